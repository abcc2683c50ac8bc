// One conditional distribution in the hands of a warp: from its logits to a drawn state and to log-probabilities.
//
// Every function is collective: all lanes of the warp call it with the same arguments and get the same result.
#pragma once

#include "common/activation.h"
#include "common/draw.h"
#include "cuda/device.cuh"

namespace pyar::cuda {

constexpr float kLargestFloat = 3.4028234e38f;

// Two states: the one Bernoulli logit, in every lane's register.
class Bernoulli {
 public:
  static PYAR_HOST_DEVICE int64_t shared_floats(int) { return 0; }

  PYAR_DEVICE Bernoulli(float* /*scratch*/, int /*num_states*/) {}

  PYAR_DEVICE void set(float logit, float temperature) { logit_ = logit / temperature; }

  // Whether the logits were numbers.
  PYAR_DEVICE bool valid() const { return fabsf(logit_) <= kLargestFloat; }

  // The state of the uniform u by draw.h's rule; only if valid().
  PYAR_DEVICE int draw(float u) const {
    const float e = expf(-fabsf(logit_));
    return draw_binary(logit_ > 0.0f ? e : 1.0f, logit_ > 0.0f ? 1.0f : e, u);
  }

  // ln p(state); NaN if not valid() or there is no such state.
  PYAR_DEVICE float log_probability(int state) const {
    if (!valid() || state > 1) return not_a_number();
    return log_sigmoid(state == 1 ? logit_ : -logit_);
  }

  // ∂ ln p(state) / ∂ logit; NaN as above.
  PYAR_DEVICE float gradient(int /*k*/, int state) const {
    if (!valid() || state > 1) return not_a_number();
    return static_cast<float>(state) - sigmoid(logit_);
  }

 private:
  float logit_ = 0.0f;
};

// More states: softmax, in shared memory of the warp's own.
class Categorical {
 public:
  static PYAR_HOST_DEVICE int64_t shared_floats(int num_states) { return 3 * int64_t{num_states}; }

  // scratch [3, num_states]. The caller puts logit k into logits()[k], any lane any k, and calls set().
  PYAR_DEVICE Categorical(float* scratch, int num_states)
      : scaled_(scratch), weight_(scratch + num_states), prefix_(scratch + 2 * num_states), num_states_(num_states) {}

  PYAR_DEVICE float* logits() { return scaled_; }

  PYAR_DEVICE void set(float temperature) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    __syncwarp();
    max_ = -INFINITY;
    for (int k = lane; k < num_states_; k += kWarp) {
      const float scaled = scaled_[k] / temperature;
      scaled_[k] = scaled;
      max_ = fmaxf(max_, scaled);
    }
    max_ = warp_max(max_);
    // A NaN among the logits is no maximum, but makes a weight and so the sum NaN.
    for (int k = lane; k < num_states_; k += kWarp) weight_[k] = expf(scaled_[k] - max_);
    __syncwarp();
    // In the order of k, as draw.h has it, in every lane.
    sum_ = 0.0f;
    for (int first = 0; first < num_states_; first += kWarp) {
      const int count = num_states_ - first < kWarp ? num_states_ - first : kWarp;
      float prefix = 0.0f;
#pragma unroll 4
      for (int k = 0; k < count; ++k) {
        sum_ += weight_[first + k];
        if (k == lane) prefix = sum_;
      }
      if (lane < count) prefix_[first + lane] = prefix;
    }
    __syncwarp();
  }

  PYAR_DEVICE bool valid() const { return sum_ > 0.0f && sum_ <= kLargestFloat; }

  PYAR_DEVICE int draw(float u) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const float target = u * sum_;
    int state = 0;
    for (int first = 0; first < num_states_; first += kWarp) {
      const bool passed = first + lane < num_states_ && prefix_[first + lane] <= target;
      state += __popc(__ballot_sync(kFullWarp, passed));
    }
    if (state == num_states_) {
      state = num_states_ - 1;
      while (state > 0 && prefix_[state] == prefix_[state - 1]) --state;
    }
    return state;
  }

  PYAR_DEVICE float log_probability(int state) const {
    if (!valid() || state >= num_states_) return not_a_number();
    return (scaled_[state] - max_) - logf(sum_);
  }

  // ∂ ln p(state) / ∂ logit k; not collective, k may differ from lane to lane.
  PYAR_DEVICE float gradient(int k, int state) const {
    if (!valid() || state >= num_states_) return not_a_number();
    return (k == state ? 1.0f : 0.0f) - weight_[k] / sum_;
  }

 private:
  float* scaled_;  // [num_states] logits, then logits over the temperature
  float* weight_;  // [num_states] w_k = exp(scaled_k − max)
  float* prefix_;  // [num_states] w_0 + … + w_k
  int num_states_;
  float max_ = 0.0f;
  float sum_ = 0.0f;
};

}  // namespace pyar::cuda
