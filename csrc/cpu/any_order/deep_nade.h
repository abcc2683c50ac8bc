// DeepNADE on the CPU: what deep_nade.cpp hands to deep_nade_kernel.cpp. K states, P outputs of every dimension (1 for
// K = 2, else K).
#pragma once

#include "cpu/any_order/network.h"

namespace pyar::cpu {

struct DeepNadeParameters : Network {
  using Value = uint8_t;
  const float* W;  // [D, K−1, H]
  const float* V;  // [D, P, F]
  const float* b;  // [D, P]
  int64_t K;
};

using DeepNadeForward = ForwardQuery<DeepNadeParameters>;
using DeepNadeSample = SampleQuery<DeepNadeParameters>;

// The _scratch functions tell the size of a work space in floats.
#define PYAR_DEEP_NADE_KERNELS                                                                          \
  int64_t deep_nade_forward_scratch(const DeepNadeParameters&);                                         \
  void deep_nade_forward(const DeepNadeForward&, int64_t begin_step, int64_t end_step, float* scratch); \
  int64_t deep_nade_sample_scratch(const DeepNadeParameters&);                                          \
  /* Draws walks begin … end−1; returns false if a conditional was not a distribution. */               \
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
