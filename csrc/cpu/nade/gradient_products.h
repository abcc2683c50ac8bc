// NADE's products on the way back: combine() sums output rows into the gradient of one sample's hidden units,
// accumulate() sums the samples' hidden units into the gradients of the rows.
//
// combine_many() gives the bits of combine(), and accumulate() takes the samples in order, so that results depend on no
// tile, batch size or thread count.
#pragma once

#include "cpu/nade/products.h"

namespace pyar::cpu::PYAR_LEVEL {

// Rows that `combine` adds up before their sum is added to the result. With K = 256 there are thousands of rows: one
// accumulator for all of them would lose digits that the reference keeps.
constexpr int64_t kSummedRows = 32;

// y[j] += Σ_r g[r·g_stride] rows[r·stride + j] for r < count and the j of kVectors vectors, the last with `last` valid.
//   g     [count]
//   rows  [count, columns]
//   y     [kVectors·kWidth]
template <int kVectors>
PYAR_INLINE void combine_columns(const float* g, int64_t g_stride, const float* rows, int64_t stride, int64_t count,
                                 int last, float* y) {
  for (int64_t r = 0; r < count;) {
    const int64_t end = r + kSummedRows < count ? r + kSummedRows : count;
    Vector sum[kVectors] = {};
    for (; r < end; ++r) {
      const Vector weight = broadcast(g[r * g_stride]);
      const float* row = rows + r * stride;
#pragma GCC unroll 8
      for (int v = 0; v < kVectors - 1; ++v) sum[v] = fused_multiply_add(load(row + v * kWidth), weight, sum[v]);
      const float* tail = row + (kVectors - 1) * kWidth;
      const Vector value = last == kWidth ? load(tail) : load_first(tail, last);
      sum[kVectors - 1] = fused_multiply_add(value, weight, sum[kVectors - 1]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(y + v * kWidth, load(y + v * kWidth) + sum[v]);
  }
}

// y[j] += Σ_r g[r·g_stride] rows[r·stride + j] for r < count, j < n.
//   g     [count]
//   rows  [count, n]
//   y     [n], padded
inline void combine(const float* g, int64_t g_stride, const float* rows, int64_t stride, int64_t count, int64_t n,
                    float* y) {
  for (; n > 8 * kWidth; n -= 8 * kWidth, rows += 8 * kWidth, y += 8 * kWidth)
    combine_columns<8>(g, g_stride, rows, stride, count, kWidth, y);
  const int vectors = static_cast<int>((n + kWidth - 1) / kWidth);
  const int last = static_cast<int>(n - (vectors - 1) * kWidth);
  switch (vectors) {
#define PYAR_CASE(c) \
  case c:            \
    return combine_columns<c>(g, g_stride, rows, stride, count, last, y)
    PYAR_CASE(1);
    PYAR_CASE(2);
    PYAR_CASE(3);
    PYAR_CASE(4);
    PYAR_CASE(5);
    PYAR_CASE(6);
    PYAR_CASE(7);
    PYAR_CASE(8);
#undef PYAR_CASE
    default:
      return;
  }
}

constexpr int kCombined = 4;  // vectors of every result at a time

// y[i][j] += Σ_r g[r·g_stride + i] rows[r·stride + j] for i < kResults, r < count, j < columns.
//   g     [count, kResults]
//   rows  [count, columns]
//   y     [kResults][columns]; columns: a multiple of kCombined·kWidth
template <int kResults>
PYAR_INLINE void combine_block(const float* g, int64_t g_stride, const float* rows, int64_t stride, int64_t count,
                               int64_t columns, float* const* y) {
  for (int64_t j = 0; j < columns; j += kCombined * kWidth) {
    for (int64_t r = 0; r < count;) {
      const int64_t end = r + kSummedRows < count ? r + kSummedRows : count;
      Vector sum[kResults][kCombined] = {};
      for (; r < end; ++r) {
        Vector value[kCombined];
#pragma GCC unroll 8
        for (int v = 0; v < kCombined; ++v) value[v] = in_register(load(rows + r * stride + j + v * kWidth));
#pragma GCC unroll 8
        for (int i = 0; i < kResults; ++i) {
          const Vector weight = in_register(broadcast(g[r * g_stride + i]));
#pragma GCC unroll 8
          for (int v = 0; v < kCombined; ++v) sum[i][v] = fused_multiply_add(value[v], weight, sum[i][v]);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kResults; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < kCombined; ++v) {
          float* target = y[i] + j + v * kWidth;
          store(target, load(target) + sum[i][v]);
        }
      }
    }
  }
}

// y[i][j] += Σ_r g[r·g_stride + i] rows[r·stride + j] for i < results, r < count, j < n; bit for bit as combine().
//   g     [count, results]
//   rows  [count, n]
//   y     [results][n], padded
inline void combine_many(const float* g, int64_t g_stride, const float* rows, int64_t stride, int64_t count, int64_t n,
                         float* const* y, int64_t results) {
  constexpr int kResults = kBlockVectors;
  const int64_t columns = n / (kCombined * kWidth) * (kCombined * kWidth);
  int64_t i = 0;
  for (; i + kResults <= results; i += kResults)
    combine_block<kResults>(g + i, g_stride, rows, stride, count, columns, y + i);
  for (; i < results; ++i) combine_block<1>(g + i, g_stride, rows, stride, count, columns, y + i);
  if (columns < n)
    for (i = 0; i < results; ++i) combine(g + i, g_stride, rows + columns, stride, count, n - columns, y[i] + columns);
}

// The tile of accumulate() with rows r + [0, kRows) and columns j + [0, kVectors·kWidth), of which those below n are
// valid.
template <int kRows, int kVectors>
PYAR_INLINE void accumulate_tile(const float* const* x, int64_t j, const float* const* g, int64_t r, int64_t g_stride,
                                 int64_t count, int64_t n, float* out, int64_t out_stride, bool overwrite) {
  constexpr int64_t kAhead = 8;  // the x lie anywhere in memory
  constexpr int64_t kColumns = kVectors * kWidth;
  Vector sum[kRows][kVectors] = {};
  // The sums take long enough for the next columns of the rows, which are written in turn, to come from memory.
  if (kRows > 1 && j + kColumns < n)
    for (int q = 0; q < kRows; ++q)
      for (int64_t v = 0; v < kColumns; v += kPadding)
        __builtin_prefetch(out + (r + q) * out_stride + j + kColumns + v, 1, 3);
  for (int64_t i = 0; i < count; ++i) {
    if (kRows > 1 && i + kAhead < count)
      for (int64_t v = 0; v < kColumns; v += kPadding) __builtin_prefetch(x[i + kAhead] + j + v, 0, 3);
    Vector value[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) value[v] = load(x[i] + j + v * kWidth);
    const float* weights = g[i] + r * g_stride;
#pragma GCC unroll 8
    for (int q = 0; q < kRows; ++q) {
      const Vector weight = in_register(broadcast(weights[q * g_stride]));
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[q][v] = fused_multiply_add(value[v], weight, sum[q][v]);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < kRows; ++q) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = j + v * kWidth;
      float* target = out + (r + q) * out_stride + at;
      const int valid = static_cast<int>(n - at < kWidth ? n - at : kWidth);
      if (valid == kWidth) {
        store(target, overwrite ? sum[q][v] : load(target) + sum[q][v]);
      } else if (valid > 0) {
        store_first(target, overwrite ? sum[q][v] : load_first(target, valid) + sum[q][v], valid);
      }
    }
  }
}

// The rows r + [0, kRows) of accumulate().
template <int kRows, int kVectors>
PYAR_INLINE void accumulate_rows(const float* const* x, const float* const* g, int64_t r, int64_t g_stride,
                                 int64_t count, int64_t n, float* out, int64_t out_stride, bool overwrite) {
  int64_t j = 0;
  // The padding of x may be read: the last tile can reach past n, but never past the padded row.
  for (; j + kVectors * kWidth <= padded(n); j += kVectors * kWidth)
    accumulate_tile<kRows, kVectors>(x, j, g, r, g_stride, count, n, out, out_stride, overwrite);
  for (; j < n; j += kWidth) accumulate_tile<kRows, 1>(x, j, g, r, g_stride, count, n, out, out_stride, overwrite);
}

// out[r·out_stride + j] (+)= Σ_i g[i][r·g_stride] x[i][j] for i < count, r < rows, j < n, with i in order.
//   x    [count][n], padded
//   g    [count][rows]
//   out  [rows, n]; `overwrite`: assigned, not added to
inline void accumulate(const float* const* x, const float* const* g, int64_t g_stride, int64_t count, int64_t rows,
                       int64_t n, float* out, int64_t out_stride, bool overwrite) {
  if (rows == 1) return accumulate_rows<1, 8>(x, g, 0, g_stride, count, n, out, out_stride, overwrite);
  // The rows in turn for every few columns, so that those of x are still in the cache.
  constexpr int kVectors = kWidth == 16 ? 4 : 2;
  const int64_t step = kVectors * kWidth;
  int64_t r = 0;
  for (int64_t j = 0; rows >= 5 && j < n; j += step) {
    if (j + step <= padded(n)) {
      for (r = 0; r + 5 <= rows; r += 5)
        accumulate_tile<5, kVectors>(x, j, g, r, g_stride, count, n, out, out_stride, overwrite);
      continue;
    }
    for (r = 0; r + 5 <= rows; r += 5)
      for (int64_t at = j; at < n; at += kWidth)
        accumulate_tile<5, 1>(x, at, g, r, g_stride, count, n, out, out_stride, overwrite);
  }
  for (; r + 2 <= rows; r += 2) accumulate_rows<2, 4>(x, g, r, g_stride, count, n, out, out_stride, overwrite);
  if (r < rows) accumulate_rows<1, 8>(x, g, r, g_stride, count, n, out, out_stride, overwrite);
}
}  // namespace pyar::cpu::PYAR_LEVEL
