// What the samplers of image models have in common: the output head's parameters, and what is to be drawn.
//
// An image has C channels a pixel and D = pixels·C dimensions; F features of a pixel, M hidden units of the head, K
// states, P outputs a channel.
#pragma once

#include <stdint.h>

namespace pyar::cpu {

struct GridHead {
  const float* W;  // [M, F]
  const float* w;  // [M]
  const float* E;  // [C(C−1)/2, K, M], what channel c receives from the state of channel j < c, at c(c−1)/2 + j
  const float* V;  // [C, P, M]
  const float* b;  // [C, P]
  int64_t F, M, C, P, K;
  int64_t mixtures;  // P = 3·mixtures for a mixture of logistic distributions; 0: the outputs are logits
};

struct GridSample {
  uint64_t seed;
  int64_t first_index;
  const int64_t* dims;  // [D], the dimension whose uniform a step takes; or null for 0 … D−1
  float temperature;
  const uint8_t* given;  // [N, num_given], or null
  int64_t num_given;
  int64_t D;
  uint8_t* x;       // [N, D]
  float* log_prob;  // [N]
};

}  // namespace pyar::cpu
