// Matrix products whose outputs lie in the lanes of vectors: rows of numbers times a matrix packed in panels.
//
// A panel is kTileVectors vectors of outputs for every number of a row. Every sum is one chain over the numbers of its
// row, in ascending order, from a value that the caller gives: its bits do not depend on rows, panels or vectors.
#pragma once

#include "cpu/gemm.h"

namespace pyar::cpu::PYAR_LEVEL {

constexpr int kPanelFloats = kTileVectors * kWidth;

// Vectors of `count` outputs, and the panels that hold them.
PYAR_INLINE int64_t vectors_of(int64_t count) { return (count + kWidth - 1) / kWidth; }
PYAR_INLINE int64_t panels_of(int64_t vectors) { return (vectors + kTileVectors - 1) / kTileVectors; }

// packed [panels][taps·inputs][4·W] from weight [outputs, inputs, taps]; the numbers of a row are its taps, each with
// all inputs. output_of(lane) is the output of lane 0 … panels·4·W − 1, or −1 for none.
template <class OutputOf>
PYAR_INLINE void pack_panels(const float* weight, int64_t inputs, int64_t taps, int64_t panels,
                             const OutputOf& output_of, float* packed) {
  const int64_t depth = inputs * taps;
  for (int64_t p = 0; p < panels; ++p) {
    for (int64_t lane = 0; lane < kPanelFloats; ++lane) {
      const int64_t output = output_of(p * kPanelFloats + lane);
      float* to = packed + p * depth * kPanelFloats + lane;
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t i = 0; i < inputs; ++i, to += kPanelFloats)
          *to = output < 0 ? 0.0f : weight[(output * inputs + i) * taps + tap];
    }
  }
}

// The rows of a product's left side that one source gives: row m's numbers are at data + m·stride.
struct Operand {
  const float* data;
  int64_t stride;
  int64_t width;
  int64_t first;  // its first row among the packed weights' `depth`
};

template <int N>
struct Vectors {
  static constexpr int count = N;
};

// Calls visit(first vector, Vectors<N>) for all of `count` vectors, panel by panel: N = kTileVectors or, at the end, 2
// and 1. Three are too rare to be worth tiles of their own.
template <class Visit>
PYAR_INLINE void for_panels(int64_t count, const Visit& visit) {
  int64_t v = 0;
  for (; v + kTileVectors <= count; v += kTileVectors) visit(v, Vectors<kTileVectors>{});
  if (v + 2 <= count) {
    visit(v, Vectors<2>{});
    v += 2;
  }
  if (v < count) visit(v, Vectors<1>{});
}

PYAR_INLINE int lanes_at(int64_t columns, int64_t vector) {
  const int64_t left = columns - vector * kWidth;
  return static_cast<int>(left < kWidth ? left : kWidth);
}

// Loads and stores of part of a vector are slow: only the last one of a row may need them.
PYAR_INLINE Vector load_lanes(const float* p, int lanes) { return lanes == kWidth ? load(p) : load_first(p, lanes); }

PYAR_INLINE void store_lanes(float* p, Vector v, int lanes) {
  if (lanes == kWidth)
    store(p, v);
  else
    store_first(p, v, lanes);
}

enum class Add { to_zero, to_what_is_there };

// to[row] = Σ_operands packed · row, or is added to, for rows 0 … count − 1. One function for all uses, since its tiles
// are most of what the compiler has to do.
//   to  [count][columns], a row to_stride behind the other · packed  [panels][depth][4·W]
inline __attribute__((noinline)) void add_products(int64_t count, const Operand* operands, int num_operands,
                                                   int64_t depth, const float* packed, float* to, int64_t to_stride,
                                                   int64_t columns, Add add) {
  for_panels(vectors_of(columns), [&](int64_t v, auto vectors) __attribute__((always_inline)) {
    constexpr int N = decltype(vectors)::count;
    const float* panel = packed + v / kTileVectors * depth * kPanelFloats + v % kTileVectors * kWidth;
    for_row_tiles(count, [&](auto tile, int64_t row) __attribute__((always_inline)) {
      constexpr int M = decltype(tile)::rows;
      Vector sum[M][N] = {};
      if (add == Add::to_what_is_there) {
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n)
            sum[m][n] = load_lanes(to + (row + m) * to_stride + (v + n) * kWidth, lanes_at(columns, v + n));
      }
      for (int t = 0; t < num_operands; ++t) {
        const Operand& o = operands[t];
        multiply_accumulate<M, N>(sum, o.data + row * o.stride, o.stride, 1, panel + o.first * kPanelFloats, o.width,
                                  kPanelFloats);
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n)
          store_lanes(to + (row + m) * to_stride + (v + n) * kWidth, sum[m][n], lanes_at(columns, v + n));
    });
  });
}

// to[row] = bias + from[row], or the bias alone without `from`: [count][columns].
inline void add_bias(int64_t count, const float* from, const float* bias, float* to, int64_t columns) {
  for (int64_t row = 0; row < count; ++row)
    for (int64_t v = 0; v < vectors_of(columns); ++v) {
      const int64_t at = row * columns + v * kWidth;
      const int lanes = lanes_at(columns, v);
      const Vector b = load_lanes(bias + v * kWidth, lanes);
      store_lanes(to + at, from == nullptr ? b : load_lanes(from + at, lanes) + b, lanes);
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
