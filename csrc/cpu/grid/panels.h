// Matrix products whose outputs lie in the lanes of vectors: rows of numbers times a matrix packed in panels.
//
// A panel is N vectors of outputs for every number of a row. Every sum is one chain over the numbers of its row, in
// ascending order, from a value that the caller gives: its bits do not depend on rows, panels or vectors.
#pragma once

#include "cpu/gemm.h"

namespace pyar::cpu::PYAR_LEVEL {

// Vectors of `count` outputs, and the panels of N vectors that hold them.
PYAR_INLINE int64_t vectors_of(int64_t count) { return (count + kWidth - 1) / kWidth; }

template <int N>
PYAR_INLINE int64_t panels_of(int64_t vectors) {
  return (vectors + N - 1) / N;
}

// packed [panels][taps·inputs][N·kWidth] from weight [outputs, inputs, taps]; the numbers of a row are its taps, each
// with all inputs. output_of(lane) is the output of lane 0 … panels·N·kWidth − 1, or −1 for none.
template <int N, class OutputOf>
PYAR_INLINE void pack_panels(const float* weight, int64_t inputs, int64_t taps, int64_t panels,
                             const OutputOf& output_of, float* packed) {
  constexpr int64_t lanes = N * kWidth;
  const int64_t depth = inputs * taps;
  for (int64_t p = 0; p < panels; ++p) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t output = output_of(p * lanes + lane);
      float* to = packed + p * depth * lanes + lane;
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t i = 0; i < inputs; ++i, to += lanes)
          *to = output < 0 ? 0.0f : weight[(output * inputs + i) * taps + tap];
    }
  }
}

// For every panel and row: begin(row, panel, sum), sum += the row's numbers times the panel, end(row, panel, sum).
// The numbers of row 0 are segments of `depth` at segment(0 … segments − 1), those of the next row_stride further.
template <int N, class Segment, class Begin, class End>
PYAR_INLINE void multiply_panels(const float* packed, int64_t panels, int64_t rows, int64_t row_stride,
                                 int64_t segments, int64_t depth, const Segment& segment, const Begin& begin,
                                 const End& end) {
  for (int64_t p = 0; p < panels; ++p) {
    const float* panel = packed + p * segments * depth * N * kWidth;
    for_row_tiles(rows, [&](auto tile, int64_t row) __attribute__((always_inline)) {
      constexpr int M = decltype(tile)::rows;
      Vector sum[M][N];
      // Unrolled, here and in what the caller gives: an index that is not a constant would keep the sums in memory.
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) begin(row + m, p, sum[m]);
      for (int64_t s = 0; s < segments; ++s)
        multiply_accumulate<M, N>(sum, segment(s) + row * row_stride, row_stride, 1, panel + s * depth * N * kWidth,
                                  depth);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) end(row + m, p, sum[m]);
    });
  }
}

// Loads and stores of the vector at unit `first` of `count`: never past the last.
PYAR_INLINE Vector load_units(const float* p, int64_t first, int64_t count) {
  return first + kWidth <= count ? load(p + first) : load_first(p + first, static_cast<int>(count - first));
}

PYAR_INLINE void store_units(float* p, int64_t first, int64_t count, Vector v) {
  if (first + kWidth <= count)
    store(p + first, v);
  else if (first < count)
    store_first(p + first, v, static_cast<int>(count - first));
}

}  // namespace pyar::cpu::PYAR_LEVEL
