// Products of one vector with rows.
//
// Every dot product has one accumulator of sixteen lanes, so that its bits depend on no number of rows and on no level
// that has fused multiply-add.
#pragma once

#include "cpu/simd.h"

namespace pyar::cpu::PYAR_LEVEL {

// out[r·out_stride] = Σ_j rows[r·stride + j] x[j] for r < kRows, j < n. With kPrefetch, memory is asked for the row
// that lies `ahead` floats behind each, for the second-level cache.
//   x     [n]
//   rows  [kRows, n]
//   out   [kRows]
template <int kRows, bool kPrefetch>
PYAR_INLINE void dot_rows(const float* x, const float* rows, int64_t stride, int64_t n, float* out, int64_t out_stride,
                          int64_t ahead) {
  Vector sum[kRows][kParts] = {};
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) {
      const Vector v = load(x + j + p * kWidth);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const float* row = rows + r * stride + j;
        sum[r][p] = fused_multiply_add(load(row + p * kWidth), v, sum[r][p]);
        if (kPrefetch && p == 0) __builtin_prefetch(row + ahead, 0, 2);
      }
    }
  }
  if (j < n) {
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) {
      const int count = lanes_of_part(n - j, p);
      const int64_t at = j + p * kWidth;
      const Vector v = load_first(x + at, count);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r)
        sum[r][p] = fused_multiply_add(load_first(rows + r * stride + at, count), v, sum[r][p]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) out[r * out_stride] = sum_of_lanes(sum[r]);
}

// Rows at a time: as many sums as the registers hold, and enough to hide a sum's latency. Five where a sum has two
// parts: ten rows are twice five.
constexpr int kMostDotRows = 12 / kParts;
constexpr int kDotRows = kParts == 2 ? 5 : 8 / kParts;

// out[r·out_stride] = Σ_j rows[r·stride + j] x[j] for r < count, j < n.
//   x     [n]
//   rows  [count, n]
//   out   [count]
template <bool kPrefetch = false>
inline void dots(const float* x, const float* rows, int64_t stride, int64_t count, int64_t n, float* out,
                 int64_t out_stride, int64_t ahead = 0) {
  for (; count > kMostDotRows; count -= kDotRows, rows += kDotRows * stride, out += kDotRows * out_stride)
    dot_rows<kDotRows, kPrefetch>(x, rows, stride, n, out, out_stride, ahead);
  switch (count) {
#define PYAR_CASE(c)                                                                                     \
  case c:                                                                                                \
    if constexpr (c <= kMostDotRows) dot_rows<c, kPrefetch>(x, rows, stride, n, out, out_stride, ahead); \
    return
    PYAR_CASE(1);
    PYAR_CASE(2);
    PYAR_CASE(3);
    PYAR_CASE(4);
    PYAR_CASE(5);
    PYAR_CASE(6);
    PYAR_CASE(7);
    PYAR_CASE(8);
    PYAR_CASE(9);
    PYAR_CASE(10);
    PYAR_CASE(11);
    PYAR_CASE(12);
#undef PYAR_CASE
    default:
      return;
  }
}

}  // namespace pyar::cpu::PYAR_LEVEL
