// One direction's steps over the positions of a map, and the gates' products: shared by training and sampling.
#pragma once

#include "cpu/cell.h"
#include "cpu/gemm.h"
#include "cpu/grid/panels.h"
#include "cpu/grid/pixel_rnn.h"

namespace pyar::cpu::PYAR_LEVEL {

using Cell = LstmCell;
constexpr int kBlockFloats = Cell::kGates * kWidth;    // of the packed weights: a vector of units, its four gates
constexpr int64_t kGateGroup = Cell::kGates * kLanes;  // of gates as they lie in maps: sixteen units, the four gates

// Where gate 0 of a vector of units lies among a position's gates; the next gate lies kLanes behind it.
PYAR_INLINE int64_t gates_of_block(int64_t block) {
  const int64_t unit = block * kWidth;
  return unit / kLanes * kGateGroup + unit % kLanes;
}

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

}  // namespace pyar::cpu::PYAR_LEVEL
