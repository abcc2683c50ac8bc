// MADE on the CPU: what made.cpp hands to the kernel (sample_kernel.cpp) of the instruction-set level in use.
//
// D dimensions, K states, P outputs a dimension (1 for K = 2, else K), H_l units in hidden layer l. The units' degrees
// 1 … D−1 are dealt out evenly and sorted: those of one degree are a slice of a layer.
#pragma once

#include <stdint.h>

#include "cpu/activation.h"

namespace pyar::cpu {

constexpr int64_t kMostLayers = 64;

struct MadeLayer {
  const float* weight;  // the first layer: W [D, K−1, H_1], or [D, H_1] for scalar input; others [H_l, H_{l−1}]
  const float* bias;    // [H_l]
  int64_t units;        // H_l
};

struct MadeParameters {
  const MadeLayer* layers;
  int64_t num_layers;
  const float* V;  // [D, P, H_L]
  const float* b;  // [D, P]
  const float* A;  // [D, K−1, D, P], or [D, D, P] for scalar input; null without direct connections
  int64_t D, K, P;
  bool scalar_input;
  Activation activation;
};

struct MadeSample {
  MadeParameters model;
  uint64_t seed;
  const int64_t* indices;  // [n], the samples' numbers
  const int64_t* dims;     // [D], the dimension whose uniform a step takes; or null for 0 … D−1
  float temperature;
  const uint8_t* given;  // [n, num_given], or null
  int64_t num_given;
  uint8_t* x;       // [n, D]
  float* log_prob;  // [n]
};

// The first unit of degree m or more: unit j has degree 1 + ⌊j (D−1) / H⌋.
inline __attribute__((always_inline)) int64_t first_unit(int64_t m, int64_t num_dims, int64_t units) {
  const int64_t degrees = num_dims > 1 ? num_dims - 1 : 1;
  if (m <= 1) return 0;
  const int64_t first = ((m - 1) * units + degrees - 1) / degrees;
  return first < units ? first : units;
}

// made_sample() draws samples begin … end−1 and returns false if a conditional was not a distribution.
#define PYAR_MADE_KERNELS                                                        \
  int64_t made_sample_scratch(const MadeParameters&); /* floats of work space */ \
  bool made_sample(const MadeSample&, int64_t begin, int64_t end, float* scratch);

namespace baseline {
PYAR_MADE_KERNELS
}
namespace avx2 {
PYAR_MADE_KERNELS
}
namespace avx512 {
PYAR_MADE_KERNELS
}
#undef PYAR_MADE_KERNELS

}  // namespace pyar::cpu
