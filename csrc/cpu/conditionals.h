// Conditionals, kWidth samples at a time: from logits and uniforms to states and their log-probabilities.
//
// Logit k of the lanes is at l[k·stride].
#pragma once

#include "common/draw.h"
#include "cpu/simd.h"

namespace pyar::cpu::PYAR_LEVEL {

PYAR_INLINE IntVector load_int(const int32_t* p) {
  IntVector v;
  memcpy(&v, p, sizeof v);
  return v;
}

PYAR_INLINE void store_int(int32_t* p, IntVector v) { memcpy(p, &v, sizeof v); }

// u = ((r >> 9) + 1/2)·2⁻²³, as uniform_from_word().
PYAR_INLINE Vector uniforms_from_words(const uint32_t* words) {
  IntVector r;
  memcpy(&r, words, sizeof r);
  r = (r >> 9) & 0x7fffff;
  return (__builtin_convertvector(r, Vector) + 0.5f) * (1.0f / 8388608.0f);
}

// log σ(±logit) = min(z, 0) − log(1 + e^−|z|), z = logit for state one and −logit for state zero.
//   e  e^−|logit|
PYAR_INLINE Vector binary_log_probability(Vector logit, Vector e, IntVector one) {
  return minimum(select(one, logit, -logit), Vector{}) - logarithm_of_one_plus(e);
}

PYAR_INLINE Vector binary_log_probability(Vector logit, IntVector one) {
  return binary_log_probability(logit, exponential(-absolute(logit)), one);
}

// log p(x) = l_x − max l − log Σ_k e^(l_k − max l) of the lanes. With kGradient, the logits are replaced by
// scale·∂log p(x)/∂l_k = scale·(1[x = k] − p(k)).
//   l  [P, kWidth]
template <bool kGradient>
PYAR_INLINE Vector log_probability(float* l, int64_t stride, int64_t P, IntVector x, Vector scale) {
  if (P == 1) {
    const IntVector one = x > 0;
    const Vector logit = load(l);
    if constexpr (kGradient) {
      const Vector other = sigmoid(select(one, -logit, logit));  // 1 − p(x), without cancellation
      store(l, scale * select(one, other, -other));
    }
    return binary_log_probability(logit, one);
  }
  Vector highest = load(l), chosen = highest;
  for (int64_t k = 1; k < P; ++k) {
    const Vector logit = load(l + k * stride);
    highest = maximum(highest, logit);
    chosen = select(x == static_cast<int32_t>(k), logit, chosen);
  }
  Vector parts[4] = {};  // 256 states in one sum would lose digits
  for (int64_t k = 0; k < P; ++k) {
    const Vector weight = exponential(load(l + k * stride) - highest);
    parts[k % 4] += weight;
    if constexpr (kGradient) store(l + k * stride, weight);
  }
  const Vector sum = (parts[0] + parts[1]) + (parts[2] + parts[3]);
  if constexpr (kGradient) {
    const Vector factor = -scale / sum;
    for (int64_t k = 0; k < P; ++k) {
      const Vector hit = select(x == static_cast<int32_t>(k), scale, Vector{});
      store(l + k * stride, fused_multiply_add(factor, load(l + k * stride), hit));
    }
  }
  return chosen - highest - logarithm(sum);
}

// Draws a state per lane as draw.h says: the smallest k with u·S < w_0 + … + w_k, S = Σ_j w_j, w_k = e^(l_k − max l).
// There always is one: the greatest weight is 1, so 1 ≤ S ≤ 256, and u ≤ 1 − 2⁻²⁴ keeps the rounded u·S below S. Lanes
// whose weights are NaN get kNoState. *term: the log-probability of the state drawn.
//   l        [P, kWidth], `stride` apart
//   weights  the same, work space
PYAR_INLINE IntVector draw_states(const float* l, float* weights, int64_t stride, int64_t P, Vector u, Vector* term) {
  if (P == 1) {
    const Vector logit = load(l);
    const Vector e = exponential(-absolute(logit));
    const IntVector positive = logit > 0.0f;  // of the two weights, the greater is 1
    const Vector weight0 = select(positive, e, broadcast(1.0f)), weight1 = select(positive, broadcast(1.0f), e);
    const Vector sum = weight0 + weight1;
    const IntVector zero = u * sum < weight0;
    *term = binary_log_probability(logit, e, ~zero);
    const IntVector state = zero + 1;
    const IntVector valid = logit <= 3.4028234e38f;  // neither NaN nor infinite
    return (state & valid) | ~valid;
  }
  Vector highest = load(l);
  for (int64_t k = 1; k < P; ++k) highest = maximum(highest, load(l + k * stride));
  Vector sum = {}, parts[4] = {};  // the parts are for the logarithm, as in log_probability()
  for (int64_t k = 0; k < P; ++k) {
    const Vector weight = exponential(load(l + k * stride) - highest);
    parts[k % 4] += weight;
    sum += weight;
    store(weights + k * stride, sum);
  }
  const Vector target = u * sum;
  IntVector state = {};
  for (int64_t k = 0; k < P; ++k) state -= load(weights + k * stride) <= target;
  Vector chosen = load(l);
  for (int64_t k = 1; k < P; ++k) chosen = select(state == static_cast<int32_t>(k), load(l + k * stride), chosen);
  *term = chosen - highest - logarithm((parts[0] + parts[1]) + (parts[2] + parts[3]));
  const IntVector valid = sum > 0.0f;
  return (state & valid) | ~valid;
}

}  // namespace pyar::cpu::PYAR_LEVEL
