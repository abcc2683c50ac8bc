// One network for the conditionals of every order, on the CPU: what DeepNADE and TableNADE hand to the kernels
// (*_kernel.cpp) of the instruction-set level in use.
//
// R walks, each along an order of its own; D dimensions, H units in the first layer, F in the last, P outputs of the
// dimension that has most.
#pragma once

#include <stdint.h>

#include "cpu/activation.h"

namespace pyar::cpu {

// Rows of units that go through the layers together: steps of walks whose values are known, or walks of samples.
constexpr int64_t kTileWalks = 48;

// h ← f(weight h + bias).
struct HiddenLayer {
  const float* weight;  // [units, inputs]
  const float* bias;    // [units]
  int64_t inputs, units;
  const float* packed;  // [dense_packed_floats()], see layers.h
  bool finite;          // no weight is infinite or NaN
};

struct Network {
  const float* U;             // [D, H]
  const float* c;             // [H]
  const HiddenLayer* layers;  // the second layer and those behind it
  int64_t num_layers;
  int64_t D, P, H, F;
  Activation activation;
};

template <class Value>
struct Walks {
  const Value* x;        // [R, D]
  const int64_t* order;  // [R, D], the dimension that a step visits
  const int64_t* begin;  // [R], the steps that are asked for; those before are given
  const int64_t* end;    // [R]
};

// Steps of known values, numbered through all walks.
template <class Model>
struct ForwardQuery {
  Model model;
  Walks<typename Model::Value> walks;
  const int64_t* steps;  // [R + 1], the steps of all walks before each
  float temperature;
  float* terms;    // [R, D], log p of every dimension's value; or null
  float* outputs;  // [R, D, P], of each step; or null
};

template <class Model>
struct SampleQuery {
  Model model;
  Walks<typename Model::Value> walks;
  uint64_t seed;
  const int64_t* indices;  // [R], the samples' numbers
  float temperature;
  typename Model::Value* x;  // [R, D]
  float* terms;              // [R, D], log p of every dimension's value, of those that are drawn
};

#define PYAR_LAYERS_KERNELS                                                       \
  int64_t dense_panels(int64_t units);                                            \
  int64_t dense_packed_floats(int64_t inputs, int64_t units);                     \
  /* Packs panels begin … end−1; returns whether the weights there are finite. */ \
  bool dense_pack(const HiddenLayer&, int64_t begin, int64_t end, float* packed);

namespace baseline {
PYAR_LAYERS_KERNELS
}
namespace avx2 {
PYAR_LAYERS_KERNELS
}
namespace avx512 {
PYAR_LAYERS_KERNELS
}
#undef PYAR_LAYERS_KERNELS

}  // namespace pyar::cpu
