// From conditional weights and one uniform to a state, by the inverse CDF.
//
// With w_k = exp(logit_k / temperature − max) and S = w_0 + … + w_{K−1} summed in that order, the state drawn is the
// smallest k with u·S < w_0 + … + w_k. Rounding can leave u·S = S: then it is the last k with w_k > 0.
#pragma once

#include "common/portable.h"

namespace pyar {

// Stands for "the weights are not numbers": no state was drawn.
constexpr int kNoState = -1;

// weights [num_states], overwritten by their prefix sums; u in (0, 1). Returns the state and sets *total to S, or
// returns kNoState if S is NaN, infinite or not positive.
PYAR_HOST_DEVICE int draw_state(float* weights, int num_states, float u, float* total) {
  float sum = 0.0f;
  for (int k = 0; k < num_states; ++k) {
    sum += weights[k];
    weights[k] = sum;
  }
  *total = sum;
  if (!(sum > 0.0f) || sum > 3.4028234e38f) return kNoState;
  const float target = u * sum;
  // The prefix sums never decrease, so the answer is how many of them are ≤ target.
  int state = 0;
  for (int k = 0; k < num_states; ++k) state += weights[k] <= target ? 1 : 0;
  if (state == num_states) {
    state = num_states - 1;
    while (state > 0 && weights[state] == weights[state - 1]) --state;
  }
  return state;
}

// The same for two states with weights w_0 and w_1.
PYAR_HOST_DEVICE int draw_binary(float weight0, float weight1, float u) {
  const float sum = weight0 + weight1;
  if (!(sum > 0.0f)) return kNoState;
  return u * sum < weight0 || weight1 == 0.0f ? 0 : 1;
}

}  // namespace pyar
