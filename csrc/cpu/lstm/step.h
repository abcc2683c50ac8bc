// One step of the LSTM for some samples: the layers, the head, the conditional. Shared by sampling and training.
//
// Vectors run over hidden units, so that one packing serves every batch size, and the four gates of a unit block are
// in registers together when their sums are complete. All numbers of a sample depend on that sample alone.
#pragma once

#include "cpu/cell.h"
#include "cpu/gemm.h"
#include "cpu/lstm/kernel.h"

namespace pyar::cpu::PYAR_LEVEL {

using Cell = LstmCell;
constexpr int kBlockFloats = Cell::kGates * kWidth;

PYAR_INLINE int64_t head_vectors(const LstmModel& model) { return (model.states + kWidth - 1) / kWidth; }

// One layer's step for `count` samples and the unit blocks first … last − 1.
struct LayerStep {
  const float* table;
  const int32_t* table_row;  // [count], or null for row 0
  const float* h_below;      // [count][stride], or null in the first layer
  const float* h_before;     // [count][stride]
  float* h_after;            // [count][stride]
  const float* c_before;     // [count][stride]
  float* c_after;            // [count][stride]; may be c_before
  float* gates;              // block n's at n·gate_step: [count][4·W], the gates for the way back; null: not kept
  int64_t gate_step;
  float* sums;  // [count][4·W], scratch
};

template <class Weight, int M>
PYAR_INLINE void advance_tile(const LstmModel& model, const LayerStep& step, int64_t row, int64_t block, const float* a,
                              const Weight* weights, int64_t depth, bool starts, bool ends) {
  Vector sum[M][Cell::kGates];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const float* from = step.sums + (row + m) * kBlockFloats;
    if (starts) {
      const int64_t table_row = step.table_row != nullptr ? step.table_row[row + m] : 0;
      from = step.table + (table_row * model.blocks + block) * kBlockFloats;
    }
#pragma GCC unroll 8
    for (int gate = 0; gate < Cell::kGates; ++gate) sum[m][gate] = load(from + gate * kWidth);
  }
  multiply_accumulate<M, Cell::kGates>(sum, a + row * model.stride, model.stride, 1, weights, depth);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    if (ends) {
      const int64_t at = (row + m) * model.stride + block * kWidth;
      Vector c = load(step.c_before + at);
      store(step.h_after + at, Cell::forward(sum[m], &c));
      store(step.c_after + at, c);
    }
    float* to = step.sums + (row + m) * kBlockFloats;
    if (ends) {
      if (step.gates == nullptr) continue;
      to = step.gates + block * step.gate_step + (row + m) * kBlockFloats;
    }
#pragma GCC unroll 8
    for (int gate = 0; gate < Cell::kGates; ++gate) store(to + gate * kWidth, sum[m][gate]);
  }
}

template <class Weight>
void advance_layer(const LstmModel& model, const LstmLayer& layer, const LayerStep& step, int64_t count, int64_t first,
                   int64_t last) {
  const int64_t hidden = model.hidden;
  const int64_t depth = count > kTileRows ? kTileDepth : hidden;
  for (int64_t block = first; block < last; ++block) {
    for (int part = step.h_below != nullptr ? 0 : 1; part < 2; ++part) {
      const float* a = part == 0 ? step.h_below : step.h_before;
      const Weight* weights = static_cast<const Weight*>(part == 0 ? layer.below : layer.recurrent);
      weights += block * hidden * kBlockFloats;
      for (int64_t k = 0; k < hidden; k += depth) {
        const bool starts = k == 0 && (part == 0 || step.h_below == nullptr);
        const bool ends = k + depth >= hidden && part == 1;
        const int64_t here = k + depth < hidden ? depth : hidden - k;
        for_row_tiles(count, [&](auto tile, int64_t row) __attribute__((always_inline)) {
          advance_tile<Weight, decltype(tile)::rows>(model, step, row, block, a + k, weights + k * kBlockFloats, here,
                                                     starts, ends);
        });
      }
    }
  }
}

// logits [count][⌈K/W⌉·W] = head · h for the head's vectors first … last − 1. Four chains over k = 0, 1, 2, 3 mod 4,
// so that a single sample does not wait for every addition; then (0 + 1) + (2 + 3), then the bias.
static inline void head_logits(const LstmModel& model, const float* h, float* logits, int64_t count, int64_t first,
                               int64_t last) {
  const int64_t hidden = model.hidden, whole = hidden & ~int64_t{3};
  for (int64_t v = first; v < last; ++v) {
    const float* weights = model.head + v * hidden * kWidth;
    for_row_tiles(count, [&](auto tile, int64_t row) __attribute__((always_inline)) {
      constexpr int M = decltype(tile)::rows;
      const float* a = h + row * model.stride;
      Vector sum[4][M] = {};
      for (int64_t k = 0; k < whole; k += 4) {
#pragma GCC unroll 4
        for (int chain = 0; chain < 4; ++chain) {
          const Vector weight = load(weights + (k + chain) * kWidth);
#pragma GCC unroll 8
          for (int m = 0; m < M; ++m)
            sum[chain][m] = fused_multiply_add(broadcast(a[m * model.stride + k + chain]), weight, sum[chain][m]);
        }
      }
      for (int64_t k = whole; k < hidden; ++k) {
        const Vector weight = load(weights + k * kWidth);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
          sum[0][m] = fused_multiply_add(broadcast(a[m * model.stride + k]), weight, sum[0][m]);
      }
      const Vector bias = load(model.head_bias + v * kWidth);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
        store(logits + (row + m) * head_vectors(model) * kWidth + v * kWidth,
              ((sum[0][m] + sum[1][m]) + (sum[2][m] + sum[3][m])) + bias);
    });
  }
}

// One conditional: scaled = logits / temperature, weights = exp(scaled − max).
struct Conditional {
  alignas(64) float scaled[kMaxStates];
  alignas(64) float weights[kMaxStates];
  float max;
};

PYAR_INLINE void weigh(const float* logits, int64_t vectors, float temperature, Conditional* conditional) {
  Vector max = broadcast(-__builtin_inff());
  for (int64_t v = 0; v < vectors; ++v) {
    const Vector scaled = load(logits + v * kWidth) / temperature;
    store(conditional->scaled + v * kWidth, scaled);
    max = maximum(max, scaled);
  }
  alignas(64) float lanes[kWidth];
  store(lanes, max);
  float top = lanes[0];
  for (int lane = 1; lane < kWidth; ++lane) top = lanes[lane] > top ? lanes[lane] : top;
  conditional->max = top;
  for (int64_t v = 0; v < vectors; ++v)
    store(conditional->weights + v * kWidth, exponential(load(conditional->scaled + v * kWidth) - top));
}

// log p(state), in nats, where total is the sum of the weights in order.
PYAR_INLINE double log_probability(const Conditional& conditional, int state, float total) {
  return static_cast<double>(conditional.scaled[state]) - conditional.max - log(static_cast<double>(total));
}

}  // namespace pyar::cpu::PYAR_LEVEL
