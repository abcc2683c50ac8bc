// MADE on the CPU: what made.cpp and log_prob.cpp hand to the kernels of the instruction-set level in use.
//
// D dimensions, K states, P outputs a dimension (1 for K = 2, else K), H_l units in hidden layer l. The units' degrees
// 1 … D−1 are dealt out evenly and sorted, so that those of one degree are a slice of a layer, and every matrix is a
// staircase: the first outputs see the fewest inputs.
#pragma once

#include <stdint.h>

#include "cpu/activation.h"

namespace pyar::cpu {

constexpr int64_t kMostLayers = 64;

// Which inputs the outputs of a matrix see. Neither table ever decreases.
struct Staircase {
  const int32_t* reach;  // [outputs]: the output sees the inputs before this one
  const int32_t* start;  // [inputs]: the first output that sees the input
};

struct MadeLayer {
  const float* weight;   // the first layer: W [D, K−1, H_1], or [D, H_1] for scalar input; others [H_l, H_{l−1}]
  const float* bias;     // [H_l]
  int64_t units;         // H_l
  const int32_t* first;  // [D + 2]: the first unit of that degree or more
  Staircase seen;        // inputs of the first layer: the dimensions
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
  Staircase seen_by_V, seen_by_A;  // outputs: D·P; inputs of A: the dimensions
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

// Samples are taken in tiles of made_tile_samples(), which lie in the lanes of vectors. All values of a tile make a
// block [made_rows(), lanes]: the input as numbers [D] for scalar input, the units of every layer, and the outputs
// [D·P], which become the gradient of log p with respect to them. Blocks of all tiles lie one after the other.
struct MadeLogProb {
  MadeParameters model;
  const uint8_t* x;  // [n, D]
  int64_t n;
  float temperature;
  const float* const* dropout;  // [num_layers][n, H_l], what every unit is multiplied by; null for 1
};

struct MadeGradient {
  MadeLogProb forward;
  const float* grad;         // [n], of log p(x)
  const float* values;       // the blocks that made_log_prob() left
  float* deltas;             // blocks of the same shape: the gradients with respect to sums before f, and to outputs
  float* columns;            // [made_columns()], transposed: see log_prob_kernel.cpp
  const int32_t* begin;      // [D·(K−1) + 1] for one row a state, the samples that have the state of a row:
  const int32_t* users;      //   users[begin[row]] … users[begin[row + 1] − 1]
  float *W, *c, *V, *b, *A;  // the gradients, shaped as the parameters
  float *const *weights, *const *biases;  // those of the layers behind the first
};

// made_sample() draws samples begin … end−1 and returns false if a conditional was not a distribution.
// made_log_prob() computes log_prob [n] of the samples of a tile; block: where its values go.
// made_deltas() goes backward through a tile; then made_gradient() computes one of made_gradient_pieces() of the
// gradients of all parameters.
#define PYAR_MADE_KERNELS                                                                              \
  int64_t made_sample_scratch(const MadeParameters&); /* floats of work space */                       \
  bool made_sample(const MadeSample&, int64_t begin, int64_t end, float* scratch);                     \
  int64_t made_tile_samples();                                                                         \
  int64_t made_log_prob_scratch(const MadeParameters&);                                                \
  void made_log_prob(const MadeLogProb&, int64_t tile, float* block, float* log_prob, float* scratch); \
  int64_t made_columns(const MadeParameters&, int64_t n);                                              \
  void made_deltas(const MadeGradient&, int64_t tile);                                                 \
  int64_t made_gradient_pieces(const MadeParameters&);                                                 \
  void made_gradient(const MadeGradient&, int64_t piece);

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

// The rows of a block, and where the units of a layer and the outputs begin in it.
inline __attribute__((always_inline)) int64_t made_row_of_layer(const MadeParameters& m, int64_t layer) {
  int64_t row = m.scalar_input ? m.D : 0;
  for (int64_t l = 0; l < layer; ++l) row += m.layers[l].units;
  return row;
}
inline __attribute__((always_inline)) int64_t made_rows(const MadeParameters& m) {
  return made_row_of_layer(m, m.num_layers) + m.D * m.P;
}

}  // namespace pyar::cpu
