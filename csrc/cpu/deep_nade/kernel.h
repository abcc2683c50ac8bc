// DeepNADE on the CPU: what deep_nade.cpp hands to the kernels (*_kernel.cpp) of the instruction-set level in use.
//
// R walks, each along an order of its own; D dimensions, K states, P outputs a dimension (1 for K = 2, else K), H units
// in the first layer, F in the last.
#pragma once

#include <stdint.h>

#include "cpu/activation.h"

namespace pyar::cpu {

// Rows of units that go through the layers together: steps of one walk whose states are known, or walks of samples.
constexpr int64_t kDeepNadeRows = 48;

// h ← f(weight h + bias).
struct DeepNadeLayer {
  const float* weight;  // [units, inputs]
  const float* bias;    // [units]
  int64_t inputs, units;
  const float* packed;  // [deep_nade_packed_floats()], see layers.h
  bool finite;          // no weight is infinite or NaN
};

struct DeepNadeParameters {
  const float* W;               // [D, K−1, H]
  const float* U;               // [D, H]
  const float* c;               // [H]
  const DeepNadeLayer* layers;  // the second layer and those behind it
  int64_t num_layers;
  const float* V;  // [D, P, F]
  const float* b;  // [D, P]
  int64_t D, K, P, H, F;
  Activation activation;
};

struct DeepNadeWalks {
  const uint8_t* x;      // [R, D]
  const int64_t* order;  // [R, D], the dimension that a step visits
  const int64_t* begin;  // [R], the steps that are asked for; those before are given
  const int64_t* end;    // [R]
};

// Steps of known states, in blocks of kDeepNadeRows.
struct DeepNadeForward {
  DeepNadeParameters model;
  DeepNadeWalks walks;
  const int64_t* blocks;  // [R + 1], the blocks of all walks before each
  float temperature;
  float* terms;    // [R, D], log p of the state at each step; or null
  float* outputs;  // [R, D, P], of each step; or null
};

struct DeepNadeSample {
  DeepNadeParameters model;
  DeepNadeWalks walks;
  uint64_t seed;
  const int64_t* indices;  // [R], the samples' numbers
  float temperature;
  uint8_t* x;       // [R, D]
  float* log_prob;  // [R]
};

// The _scratch functions tell the size of a work space in floats.
#define PYAR_DEEP_NADE_KERNELS                                                                            \
  int64_t deep_nade_panels(int64_t units);                                                                \
  int64_t deep_nade_packed_floats(int64_t inputs, int64_t units);                                         \
  /* Packs panels begin … end−1 of a layer; returns whether its weights there are finite. */              \
  bool deep_nade_pack(const DeepNadeLayer&, int64_t begin, int64_t end, float* packed);                   \
  int64_t deep_nade_forward_scratch(const DeepNadeParameters&);                                           \
  void deep_nade_forward(const DeepNadeForward&, int64_t begin_block, int64_t end_block, float* scratch); \
  int64_t deep_nade_sample_scratch(const DeepNadeParameters&);                                            \
  /* Draws walks begin … end−1; returns false if a conditional was not a distribution. */                 \
  bool deep_nade_sample(const DeepNadeSample&, int64_t begin, int64_t end, float* scratch);

namespace baseline {
PYAR_DEEP_NADE_KERNELS
}
namespace avx2 {
PYAR_DEEP_NADE_KERNELS
}
namespace avx512 {
PYAR_DEEP_NADE_KERNELS
}
#undef PYAR_DEEP_NADE_KERNELS

}  // namespace pyar::cpu
