// One direction's steps over the positions of a map, and the gates' products: shared by training and sampling.
#pragma once

#include "cpu/cell.h"
#include "cpu/gemm.h"
#include "cpu/grid/pixel_rnn.h"

namespace pyar::cpu::PYAR_LEVEL {

using Cell = LstmCell;
constexpr int kBlockFloats = Cell::kGates * kWidth;    // of the packed weights: a vector of units, its four gates
constexpr int kPanelFloats = kTileVectors * kWidth;    // columns of other packed matrices, side by side in one tile
constexpr int64_t kGateGroup = Cell::kGates * kLanes;  // of gates as they lie in maps: sixteen units, the four gates

// Where gate 0 of a vector of units lies among a position's gates; the next gate lies kLanes behind it.
PYAR_INLINE int64_t gates_of_block(int64_t block) {
  const int64_t unit = block * kWidth;
  return unit / kLanes * kGateGroup + unit % kLanes;
}

// The rows of a product's left side that one tap gives: row m's numbers are at data + m·stride.
struct Operand {
  const float* data;
  int64_t stride;
  int64_t width;
  int64_t first;  // the tap's first row among the packed weights' `depth`
};

// sum[m] = bias + Σ_operands weight · row m, for a block of units: the gates before their nonlinearities.
//   weights  [depth][4·W], the block's
//   bias     of the block, that of the next row bias_stride behind
template <int M>
PYAR_INLINE void gate_sums(Vector (&sum)[M][Cell::kGates], const Operand* operands, int count, int64_t row,
                           const float* weights, const float* bias, int64_t bias_stride) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int gate = 0; gate < Cell::kGates; ++gate) sum[m][gate] = load(bias + (row + m) * bias_stride + gate * kLanes);
  for (int t = 0; t < count; ++t) {
    const Operand& o = operands[t];
    multiply_accumulate<M, Cell::kGates>(sum, o.data + row * o.stride, o.stride, 1, weights + o.first * kBlockFloats,
                                         o.width);
  }
}

// Calls visit(Vectors<N>) for N = 1 … kTileVectors.
template <int N>
struct Vectors {
  static constexpr int count = N;
};

template <class Visit>
PYAR_INLINE void with_vectors(int64_t count, const Visit& visit) {
  switch (count) {
    case 1:
      return visit(Vectors<1>{});
    case 2:
      return visit(Vectors<2>{});
    case 3:
      return visit(Vectors<3>{});
    default:
      return visit(Vectors<4>{});
  }
}

// Calls visit(first vector, Vectors<N>) for all of `count` vectors, panel by panel.
template <class Visit>
PYAR_INLINE void for_panels(int64_t count, const Visit& visit) {
  for (int64_t v = 0; v < count; v += kTileVectors) {
    const int64_t left = count - v;
    with_vectors(left < kTileVectors ? left : kTileVectors,
                 [&](auto vectors) __attribute__((always_inline)) { visit(v, vectors); });
  }
}

PYAR_INLINE int lanes_at(int64_t columns, int64_t vector) {
  const int64_t left = columns - vector * kWidth;
  return static_cast<int>(left < kWidth ? left : kWidth);
}

// to[row] = start(row, vector) + Σ_operands packed · row, for rows 0 … count − 1.
//   to [count][columns] · packed [panels][depth][4·W]
template <class Start>
PYAR_INLINE void multiply_rows(int64_t count, const Operand* operands, int num_operands, int64_t depth,
                               const float* packed, float* to, int64_t columns, const Start& start) {
  for_panels((columns + kWidth - 1) / kWidth, [&](int64_t v, auto vectors) __attribute__((always_inline)) {
    constexpr int N = decltype(vectors)::count;
    for_row_tiles(count, [&](auto tile, int64_t row) __attribute__((always_inline)) {
      constexpr int M = decltype(tile)::rows;
      Vector sum[M][N];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sum[m][n] = start(row + m, v + n);
      for (int t = 0; t < num_operands; ++t) {
        const Operand& o = operands[t];
        multiply_accumulate<M, N>(sum, o.data + row * o.stride, o.stride, 1,
                                  packed + v * depth * kWidth + o.first * kPanelFloats, o.width, kPanelFloats);
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n)
          store_first(to + (row + m) * columns + (v + n) * kWidth, sum[m][n], lanes_at(columns, v + n));
    });
  });
}

}  // namespace pyar::cpu::PYAR_LEVEL
