// The multiply-add core of the CPU kernels: a register tile of M rows × N vectors of one matrix product.
//
// Every output is one chain of fused multiply-adds over k in ascending order, started from a value the caller gives.
// So a result does not depend on which tile computed it, and a product may stop after some k, keep the sums in memory
// and go on later: the bits are those of one sweep.
#pragma once

#include "cpu/simd.h"

namespace pyar::cpu::PYAR_LEVEL {

// A tile's rows, and its vectors where a full one is wanted: 24 sums + 4 operands of 32 registers, or 12 + 4 of 16.
#if defined(__AVX512F__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 3;
#endif
constexpr int kTileVectors = 4;

// How deep a sweep goes before the next rows use the same part of B: that part stays in the first-level cache.
constexpr int64_t kTileDepth = 128;

// B is stored in float32 or, for half the memory traffic, in bfloat16: the upper half of a float32.
typedef uint16_t Bfloat16;
typedef uint16_t Bfloat16Vector __attribute__((vector_size(2 * kWidth)));
typedef uint32_t WordVector __attribute__((vector_size(4 * kWidth)));

PYAR_INLINE Vector load_weights(const float* p) { return load(p); }

PYAR_INLINE Vector load_weights(const Bfloat16* p) {
  Bfloat16Vector v;
  memcpy(&v, p, sizeof v);
  return (Vector)(__builtin_convertvector(v, WordVector) << 16);
}

// sum[m][n] += Σ_{k < depth} a[m·row_stride + k·depth_stride] · b[(k·N + n)·kWidth …]
//   a  the rows' values, broadcast: depth_stride = 1 for rows stored one after the other, row_stride = 1 for columns
//   b  [depth][N·kWidth], float or Bfloat16, a row `b_stride` behind the other
template <int M, int N, class Weight>
PYAR_INLINE void multiply_accumulate(Vector (&sum)[M][N], const float* a, int64_t row_stride, int64_t depth_stride,
                                     const Weight* b, int64_t depth, int64_t b_stride = N * kWidth) {
  for (int64_t k = 0; k < depth; ++k) {
    Vector operand[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) operand[n] = load_weights(b + n * kWidth);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Vector value = broadcast(a[m * row_stride]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[m][n] = fused_multiply_add(value, operand[n], sum[m][n]);
    }
    a += depth_stride;
    b += b_stride;
  }
}

// Calls visit(tile<M>, row) for rows 0 … count−1 in tiles of nearly equal size, kTileRows at most: a small tile at the
// end would have too few sums to keep the multipliers busy.
template <int M>
struct TileRows {
  static constexpr int rows = M;
};

template <class Visit>
PYAR_INLINE void for_row_tiles(int64_t count, const Visit& visit) {
  const int64_t tiles = (count + kTileRows - 1) / kTileRows;
  int64_t row = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t next = count * (t + 1) / tiles;
    switch (next - row) {
#if defined(__AVX512F__)
      case 6:
        visit(TileRows<6>{}, row);
        break;
      case 5:
        visit(TileRows<5>{}, row);
        break;
      case 4:
        visit(TileRows<4>{}, row);
        break;
#endif
      case 3:
        visit(TileRows<3>{}, row);
        break;
      case 2:
        visit(TileRows<2>{}, row);
        break;
      default:
        visit(TileRows<1>{}, row);
        break;
    }
    row = next;
  }
}

}  // namespace pyar::cpu::PYAR_LEVEL
