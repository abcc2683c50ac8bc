// NADE's products of hidden units with output rows: dots() for one vector, dots_of_many() for several, bit for bit the
// same. Rows that many vectors meet are first packed to a stride of whole cache lines.
#pragma once

#include "cpu/dots.h"
#include "cpu/nade/kernel.h"
#include "cpu/simd.h"

namespace pyar::cpu::PYAR_LEVEL {

// Several vectors times several rows: every load serves several multiply-adds, so that these set the pace.
constexpr int kBlockVectors = kWidth == 16 ? 4 : 2;  // as many sums as the registers hold
constexpr int kBlockRows = 5;
// Steps a turn of the loop over columns: where the lanes have parts, its turns are so few that its end costs.
constexpr int kBlockSteps = kParts == 1 ? 1 : 2;

// out[r·out_stride + i] = Σ_j rows[r·stride + j] x[i][j] for r < kRows, i < kBlockVectors, j < n.
//   x     [kBlockVectors][n]
//   rows  [kRows, n]
//   out   [kRows, kBlockVectors]
// kWhole: n is a multiple of kLanes, as of packed rows. Without code for the rest the compiler orders the steps better.
// Not inlined: within a larger function the compiler keeps some of the sums in memory.
template <int kRows, bool kWhole>
__attribute__((noinline)) void dot_block(const float* const* x, const float* rows, int64_t stride, int64_t n,
                                         float* out, int64_t out_stride) {
  constexpr int kSums = kRows * kBlockVectors;
  const float* from[kBlockVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kBlockVectors; ++i) from[i] = x[i];
  // A part of the lanes after the other: their sums would not fit in the registers together.
  Vector part[kParts][kSums], sum[kSums];
  const auto sweep = [&](int64_t j) __attribute__((always_inline)) {
#pragma GCC unroll 20
    for (int s = 0; s < kSums; ++s) sum[s] = Vector{};
    const auto step = [&](int64_t at) __attribute__((always_inline)) {
      Vector v[kBlockVectors];
#pragma GCC unroll 8
      for (int i = 0; i < kBlockVectors; ++i) v[i] = load(from[i] + at);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vector weight = in_register(load(rows + r * stride + at));
#pragma GCC unroll 8
        for (int i = 0; i < kBlockVectors; ++i)
          sum[r * kBlockVectors + i] = fused_multiply_add(weight, v[i], sum[r * kBlockVectors + i]);
      }
    };
    for (; j + (kBlockSteps - 1) * kLanes + kWidth <= n; j += kBlockSteps * kLanes) {
#pragma GCC unroll 8
      for (int s = 0; s < kBlockSteps; ++s) step(j + s * kLanes);
    }
    for (; kBlockSteps > 1 && j + kWidth <= n; j += kLanes) step(j);
    if constexpr (kWhole) return;
    if (j < n) {
      const int rest = static_cast<int>(n - j);
      Vector v[kBlockVectors];
#pragma GCC unroll 8
      for (int i = 0; i < kBlockVectors; ++i) v[i] = load_first(from[i] + j, rest);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vector weight = load_first(rows + r * stride + j, rest);
#pragma GCC unroll 8
        for (int i = 0; i < kBlockVectors; ++i)
          sum[r * kBlockVectors + i] = fused_multiply_add(weight, v[i], sum[r * kBlockVectors + i]);
      }
    }
  };
#pragma GCC unroll 4
  for (int p = 0; p < kParts; ++p) {
    sweep(p * kWidth);
#pragma GCC unroll 20
    for (int s = 0; s < kSums; ++s) part[p][s] = sum[s];
  }
  Vector folded[kSums];
#pragma GCC unroll 20
  for (int s = 0; s < kSums; ++s) {
    Vector parts[kParts];
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) parts[p] = part[p][s];
    folded[s] = fold(parts);
  }
  float total[kSums];
#pragma GCC unroll 8
  for (int s = 0; s + 4 <= kSums; s += 4) horizontal_sums(folded + s, total + s);
#pragma GCC unroll 4
  for (int s = kSums / 4 * 4; s < kSums; ++s) total[s] = horizontal_sum(folded[s]);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
    memcpy(out + r * out_stride, total + r * kBlockVectors, kBlockVectors * sizeof(float));
}

// Rows that stay in the first-level cache while many vectors pass.
PYAR_INLINE int64_t rows_at_once(int64_t stride) {
  return stride * kBlockRows >= kGroupFloats ? kBlockRows : kGroupFloats / stride / kBlockRows * kBlockRows;
}

// out[r·out_stride + i] = Σ_j rows[r·stride + j] x[i][j] for r < count, i < vectors, j < n; bit for bit as dots().
//   x     [vectors][n]
//   rows  [count, n]
//   out   [count, vectors]
inline void dots_of_many(const float* const* x, int64_t vectors, const float* rows, int64_t stride, int64_t count,
                         int64_t n, float* out, int64_t out_stride) {
  const int64_t most = rows_at_once(stride);
  const auto block = n % kLanes == 0 ? dot_block<kBlockRows, true> : dot_block<kBlockRows, false>;
  for (int64_t r0 = 0; r0 < count; r0 += most) {
    const int64_t r1 = r0 + most < count ? r0 + most : count;
    int64_t i = 0;
    for (; i + kBlockVectors <= vectors; i += kBlockVectors) {
      int64_t r = r0;
      for (; r + kBlockRows <= r1; r += kBlockRows)
        block(x + i, rows + r * stride, stride, n, out + r * out_stride + i, out_stride);
      const float* rest = rows + r * stride;
      float* target = out + r * out_stride + i;
      switch (r1 - r) {
        case 1:
          dot_block<1, false>(x + i, rest, stride, n, target, out_stride);
          break;
        case 2:
          dot_block<2, false>(x + i, rest, stride, n, target, out_stride);
          break;
        case 3:
          dot_block<3, false>(x + i, rest, stride, n, target, out_stride);
          break;
        case 4:
          dot_block<4, false>(x + i, rest, stride, n, target, out_stride);
          break;
        default:
          break;
      }
    }
    for (; i < vectors; ++i) dots(x[i], rows + r0 * stride, stride, r1 - r0, n, out + r0 * out_stride + i, out_stride);
  }
}

// packed[r·row_stride(F) + j] = rows[r·F + j] for r < count, j < F: no vector straddles cache lines or rows. Zeros
// behind.
//   rows    [count, F]
//   packed  [count, row_stride(F)]
inline void pack_rows(const float* rows, int64_t count, int64_t F, float* packed) {
  const int64_t stride = row_stride(F);
  for (int64_t r = 0; r < count; ++r) {
    memcpy(packed + r * stride, rows + r * F, F * sizeof(float));
    for (int64_t j = F; j < stride; ++j) packed[r * stride + j] = 0.0f;
  }
}

constexpr int64_t kPackingUses = 8;

// Weight rows [count, columns], `stride` floats apart.
struct Rows {
  const float* data;
  int64_t stride, columns;
};

// The rows [count, columns], packed where `uses` of them pay for the copy.
PYAR_INLINE Rows group_rows(const float* rows, int64_t count, int64_t columns, int64_t uses, float* packed) {
  if (uses < kPackingUses || columns % kPadding == 0) return {rows, columns, columns};
  pack_rows(rows, count, columns, packed);
  return {packed, row_stride(columns), padded(columns)};
}

// How many items of so many floats each stay in the first-level cache together; at least one.
PYAR_INLINE int64_t group_size(int64_t floats_each) {
  return floats_each >= kGroupFloats ? 1 : kGroupFloats / floats_each;
}

}  // namespace pyar::cpu::PYAR_LEVEL
