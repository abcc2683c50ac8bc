// What MADE's kernels share: matrix products of samples in the lanes of vectors, and the nonlinearities.
#pragma once

#include "cpu/activate.h"
#include "cpu/gemm.h"
#include "cpu/made/kernel.h"

namespace pyar::cpu::PYAR_LEVEL {

constexpr int64_t kTileSamples = kTileVectors * kWidth;  // samples in a tile, at most

PYAR_INLINE int64_t padded(int64_t count) { return (count + 15) / 16 * 16; }

// sums[r] += Σ_{k < depth} a[r·row_stride + k·depth_stride] · b[k] for r < count, or over the part of the depth that a
// row sees: from[r] ≤ k, k < to[r]. Neither may decrease with r; null for all. What is not seen is not read.
//   sums, b  [·, N vectors]
template <int N>
inline void add_products(float* sums, int64_t count, const float* a, int64_t row_stride, int64_t depth_stride,
                         const float* b, int64_t depth, const int32_t* from = nullptr, const int32_t* to = nullptr) {
  constexpr int64_t lanes = N * kWidth;
  const auto lesser = [](int64_t one, int64_t two) { return one < two ? one : two; };
  const auto greater = [](int64_t one, int64_t two) { return one > two ? one : two; };
  struct Part {
    const float* a;
    int64_t row_stride, depth_stride, begin, end;
  };
  for (int64_t k = 0; k < depth; k += kTileDepth) {
    const int64_t deepest = lesser(depth, k + kTileDepth);
    for_row_tiles(count, [&](auto tile, int64_t row) __attribute__((always_inline)) {
      constexpr int M = decltype(tile)::rows;
      // Some rows see begin … end−1, all of them all_begin … all_end−1.
      const int64_t begin = from == nullptr ? k : greater(k, from[row]);
      const int64_t end = to == nullptr ? deepest : lesser(deepest, to[row + M - 1]);
      if (begin >= end) return;
      const int64_t all_end = to == nullptr ? end : greater(begin, lesser(end, to[row]));
      const int64_t all_begin = from == nullptr ? begin : lesser(all_end, greater(begin, from[row + M - 1]));
      // Before and behind them, with zeros for what is not seen.
      float edge[M * kTileDepth];
      const auto edge_of = [&](int64_t first, int64_t last) {
        for (int64_t j = first; j < last; ++j)
          for (int m = 0; m < M; ++m) {
            const bool seen = (from == nullptr || from[row + m] <= j) && (to == nullptr || j < to[row + m]);
            edge[(j - first) * M + m] = seen ? a[(row + m) * row_stride + j * depth_stride] : 0.0f;
          }
        return Part{edge, 1, M, first, last};
      };
      const Part parts[2] = {
          {a + row * row_stride + all_begin * depth_stride, row_stride, depth_stride, all_begin, all_end},
          to == nullptr ? edge_of(begin, all_begin) : edge_of(all_end, end)};
      Vector sum[M][N];
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) sum[m][n] = load(sums + (row + m) * lanes + n * kWidth);
      for (int p = 0; p < 2; ++p) {
        const Part& part = parts[from == nullptr ? p : 1 - p];  // in ascending order of k
        multiply_accumulate<M, N>(sum, part.a, part.row_stride, part.depth_stride, b + part.begin * lanes,
                                  part.end - part.begin);
      }
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) store(sums + (row + m) * lanes + n * kWidth, sum[m][n]);
    });
  }
}

// grad · f′(a) for h = f(a).
PYAR_INLINE Vector through_activation(Activation f, Vector h, Vector grad) {
  switch (f) {
    case Activation::sigmoid:
      return grad * (h * (1.0f - h));
    case Activation::tanh:
      return grad * (1.0f - h * h);
    default:
      return select(h > 0.0f, grad, Vector{});
  }
}

}  // namespace pyar::cpu::PYAR_LEVEL
