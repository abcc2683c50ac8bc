// NADE on the CPU: what nade.cpp hands to the kernels (*_kernel.cpp) of the instruction-set level in use.
//
// B batch, D dimensions, H hidden units, K states, P outputs a dimension (1 for K = 2, else K), F features that the
// output rows see (H, or the size of the last added layer). Rows of work space lie row_stride floats apart.
#pragma once

#include <stdint.h>

#include "cpu/team.h"

namespace pyar::cpu {

constexpr int64_t kPadding = 16;               // floats: a cache line, and the widest vector
constexpr int64_t kTile = 64;                  // samples that a thread carries along together
constexpr int64_t kUnits = 8;                  // parts into which the samples of a gradient's sub-batch are divided
constexpr int64_t kUnit = 16;                  // samples in a unit, at most
constexpr int64_t kFewestInUnit = 4;           // where the sub-batch is small: a unit's sums have to pay
constexpr int64_t kSubBatch = kUnits * kUnit;  // samples whose gradients are computed together, at any thread count
constexpr int64_t kMostAhead = 16;             // dimensions that a lone sample looks ahead, at most
constexpr int64_t kGroupFloats = 8192;         // of output weights, so that they stay in the first-level cache

// One added layer: f ← max(0, weight f + bias).
struct DenseLayer {
  const float* weight;  // [outputs, inputs]
  const float* bias;    // [outputs]
  int64_t inputs, outputs;
};

struct NadeParameters {
  const float* W;  // [D, K−1, H], or [D, H] for scalar input
  const float* c;  // [H]
  const float* V;  // [D, P, F]
  const float* b;  // [D, P]
  int64_t D, H, K, P, F;
  bool scalar_input;
  int64_t num_layers;
  const DenseLayer* layers;
  // What many samples share, made once a call for two states (NadeTable); null: made when needed.
  const float* factors;  // [D + 1, row_stride(H)], e^(−W[d, 1]), padded (units.h); row D changes nothing
  const float* largest;  // [D + 1], max |W[d, 1]|, or NaN
  const float* rows;     // [D, row_stride(F)], V padded with zeros
};

// Where the table of NadeParameters is made.
struct NadeTable {
  float *factors, *largest, *rows;
};

// Log-probabilities and logits of given states.
struct NadeForward {
  NadeParameters model;
  const uint8_t* x;    // [B, D]
  float* log_prob;     // [B], or null
  float* conditional;  // [B, D], log p(x_d | x_<d), or null
  float* logits;       // [B, D, P], or null
};

// Gradients of one sub-batch of n ≤ kSubBatch samples, in blocks of dimensions from the last to the first. A run is a
// maximal stretch of dimensions over which the hidden units stay the same; run r of sample i has row i·block + r of
// `hidden`, `suffix`, `features` and `feature_gradients`.
//
// With the table of two states a unit of samples does a block alone, in its own work space, and leaves its part of the
// block's gradients in `partial`; `hidden`, `suffix`, `logit_gradients` and `run` are not used.
struct NadeBackward {
  NadeParameters model;
  const uint8_t* x;            // [n, D]
  int64_t n, block;            // block: dimensions a block
  const float* grad_log_prob;  // [n]; null: grad_constant for every sample
  float grad_constant;
  const float* grad_conditional;    // [n, D]; if not null, it replaces the gradient of the log-probability
  const float* grad_logits;         // [n, D, P]; if not null, it replaces the gradient of the log-probability
  double* log_prob;                 // [n], added to; or null
  float* checkpoints;               // [blocks, n, H], the units at the start of every block,
  float* bounds;                    // [blocks, n], and their bounds
  float* hidden;                    // [n, block, H], σ(activation) of every run
  float* suffix;                    // [n, block, H], Σ ∂L/∂a_e over the dimensions e after the run
  float* later;                     // [n, H], the same for the dimensions after the block in progress
  float* logit_gradients;           // [block, P, kUnits, kUnit]
  int32_t* run;                     // [n, block], the run of every dimension
  int64_t units;                    // into which the samples are divided
  float* partial;                   // [2, units, block, 2, H], of V's and W's rows, in turn for every other block,
  float* partial_b;                 // [2, units, padded(block)], and of b
  float* const* features;           // a layer: [n, block, M], its outputs
  float* const* feature_gradients;  // a layer: [n, block, M]
  bool first;                       // the gradients below are overwritten, not added to
  float *grad_W, *grad_c, *grad_V, *grad_b;
  float* const* grad_layers;  // weight, bias of every layer
};

struct NadeSample {
  NadeParameters model;
  uint64_t seed, first_index;
  float temperature;
  const uint8_t* given;  // [n, num_given], or null
  int64_t num_given;
  uint8_t* x;       // [n, D]
  float* log_prob;  // [n]
};

// Whole cache lines, and whole vectors of any level.
inline __attribute__((always_inline)) int64_t padded(int64_t count) {
  return (count + kPadding - 1) / kPadding * kPadding;
}

// The distance between rows of work space: an odd number of cache lines, so that the same columns of many rows do not
// compete for the same few sets of the cache.
inline __attribute__((always_inline)) int64_t row_stride(int64_t count) { return padded(count) | kPadding; }

// Every function takes a range of samples (or units, dimensions, rows) and a work space of its own; the _scratch
// functions tell its size in floats.
#define PYAR_NADE_KERNELS                                                                                   \
  void nade_table(const NadeParameters&, const NadeTable&, int64_t begin, int64_t end);                     \
  int64_t nade_forward_scratch(const NadeParameters&);                                                      \
  void nade_forward(const NadeForward&, int64_t begin, int64_t end, float* scratch);                        \
  void nade_checkpoints(const NadeBackward&, int64_t begin, int64_t end);                                   \
  int64_t nade_backward_scratch(const NadeBackward&);                                                       \
  void nade_backward_samples(const NadeBackward&, int64_t d0, int64_t begin, int64_t end, float* scratch);  \
  void nade_backward_dimensions(const NadeBackward&, int64_t d0, int64_t begin, int64_t end);               \
  int64_t nade_unit_scratch(const NadeBackward&);                                                           \
  void nade_unit_backward(const NadeBackward&, int64_t d0, int64_t turn, int64_t unit, float* scratch);     \
  void nade_unit_sums(const NadeBackward&, int64_t d0, int64_t turn, int64_t begin, int64_t end);           \
  int64_t nade_layer_scratch(const NadeBackward&);                                                          \
  void nade_backward_layer(const NadeBackward&, int64_t d0, int64_t layer, int64_t begin, int64_t end,      \
                           float* scratch);                                                                 \
  void nade_backward_end(const NadeBackward&);                                                              \
  int64_t nade_sample_scratch(const NadeParameters&);                                                       \
  /* Both return false if a conditional was not a distribution. */                                          \
  bool nade_sample_alone(const NadeSample&, int64_t index, float* logits, float* scratch, Team*, int rank); \
  bool nade_sample(const NadeSample&, int64_t begin, int64_t end, float* scratch);

namespace baseline {
PYAR_NADE_KERNELS
}
namespace avx2 {
PYAR_NADE_KERNELS
}
namespace avx512 {
PYAR_NADE_KERNELS
}
#undef PYAR_NADE_KERNELS

}  // namespace pyar::cpu
