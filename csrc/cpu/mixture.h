// Mixtures of C densities as conditionals of real values, kWidth samples at a time:
//
//   p(x) = Σ_k π_k f(z_k)/σ_k,   z_k = (x − μ_k)/σ_k,   π = softmax(l),   σ_k = e^(s_k) + floor
//
// with f the standard density of the family (pyar.reference.mixtures). Output r of the lanes is at outputs[r·stride]:
// the C logits l, then the means μ, then the log-scales s. A lane's numbers depend on that lane alone.
#pragma once

#include "cpu/family.h"
#include "cpu/simd.h"

namespace pyar::cpu::PYAR_LEVEL {

constexpr float kInfinity = __builtin_huge_valf();
constexpr float kLargestFloat = 3.4028234e38f;

// Whether any lane of a mask is set.
PYAR_INLINE bool any(IntVector mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_testz_si256((__m256i)mask, (__m256i)mask) == 0;
#else
  int32_t lanes = 0;
  for (int i = 0; i < kWidth; ++i) lanes |= mask[i];
  return lanes != 0;
#endif
}

PYAR_INLINE Vector square_root(Vector a) {
#if defined(__AVX512F__)
  return (Vector)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
  return (Vector)_mm256_sqrt_ps((__m256)a);
#else
  for (int i = 0; i < kWidth; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Scales.

struct Scale {
  Vector log;      // ln σ
  Vector inverse;  // 1/σ
  Vector slope;    // ∂ln σ/∂s = e^s/σ
};

// ln σ = m + ln(1 + e^−|s − ln floor|), m = max(s, ln floor): for scales that are no normal float.
inline __attribute__((noinline)) Scale extreme_scale(Vector s, Vector floor) {
  const IntVector small = floor < 1.0f;  // denormal numbers have no logarithm here, unless they are made larger
  Vector log_floor = logarithm(select(small, floor * 0x1p64f, floor)) - select(small, broadcast(44.3614196f), Vector{});
  log_floor = select(floor > 0.0f, log_floor, broadcast(-kInfinity));
  const IntVector above = s > log_floor;
  const Vector greater = select(above, s, log_floor);
  const Vector e = exponential(-absolute(select(s == log_floor, Vector{}, s - log_floor)));
  const Vector root = exponential(minimum(broadcast(88.0f), -0.5f * greater));  // its square may be denormal, or ∞
  const Vector inverse = root * root / (1.0f + e);
  return {greater + logarithm_of_one_plus(e), inverse, select(above, broadcast(1.0f), e) / (1.0f + e)};
}

// The scale e^s + floor, floor ≥ 0. NaN stays NaN.
PYAR_INLINE Scale scale_of(Vector s, Vector floor) {
  const Vector power = exponential(s);
  const Vector sigma = power + floor;
  const Vector inverse = 1.0f / sigma;
  Scale scale = {logarithm(sigma), inverse, power * inverse};
  const IntVector extreme = (s > 88.0f) | (sigma < 1.2e-38f) | (floor > 1e38f);
  if (__builtin_expect(any(extreme), 0)) {
    const Scale other = extreme_scale(s, floor);
    scale = {select(extreme, other.log, scale.log), select(extreme, other.inverse, scale.inverse),
             select(extreme, other.slope, scale.slope)};
  }
  return scale;
}

// ---------------------------------------------------------------------------------------------------------------------
// Densities.

// ln f(z), and with kGradient *score = −∂ln f(z)/∂z.
template <Family kFamily, bool kGradient>
PYAR_INLINE Vector log_density(Vector z, Vector* score) {
  if constexpr (kFamily == Family::gaussian) {
    if constexpr (kGradient) *score = z;
    return fused_multiply_add(-0.5f * z, z, broadcast(-0.918938533f));  // ½ ln 2π
  }
  const Vector magnitude = absolute(z);
  const IntVector sign = (IntVector)z & (int32_t)0x80000000;
  if constexpr (kFamily == Family::logistic) {
    // e^−|z| − 1, exact near zero: the score is tanh(z/2) = −sign(z)·less/(2 + less).
    Vector power, t;
    split_exponential(-magnitude, &power, &t);
    const Vector less = fused_multiply_add(power, t, power - 1.0f);
    if constexpr (kGradient) *score = (Vector)((IntVector)(-less / (2.0f + less)) | sign);
    return -fused_multiply_add(broadcast(2.0f), logarithm_of_one_plus(1.0f + less), magnitude);
  }
  if constexpr (kGradient) {
    const Vector one = (Vector)((IntVector)broadcast(1.0f) | sign);
    *score = select(z == 0.0f, Vector{}, select(z == z, one, z));
  }
  return -magnitude - 0.693147181f;
}

// ln p(x) of the lanes. The outputs are overwritten; with kGradient by scale·∂ln p(x)/∂outputs:
//   ∂/∂l_k = r_k − π_k,   ∂/∂μ_k = r_k ψ_k/σ_k,   ∂/∂s_k = r_k (z_k ψ_k − 1) e^(s_k)/σ_k,   ∂/∂x = −Σ_k r_k ψ_k/σ_k
// with ψ = −∂ln f/∂z the score and r_k = π_k f(z_k)/(σ_k p(x)) the responsibilities.
//   outputs  [3C], `stride` apart
//   weights  [C], `stride` apart, work space; and *slope = scale·∂ln p(x)/∂x: with kGradient alone
template <Family kFamily, bool kGradient>
PYAR_INLINE Vector mixture_log_density(float* outputs, int64_t stride, int64_t C, Vector x, Vector floor,
                                       float* weights, Vector scale, Vector* slope) {
  float* const logits = outputs;
  float* const means = outputs + C * stride;
  float* const log_scales = means + C * stride;
  Vector highest = load(logits);
  for (int64_t k = 1; k < C; ++k) highest = maximum(highest, load(logits + k * stride));
  // ln(π_k f(z_k)/σ_k), up to ln Σ e^(l − highest), takes the place of l_k.
  Vector total = {}, best = broadcast(-kInfinity);
  for (int64_t k = 0; k < C; ++k) {
    const Vector logit = load(logits + k * stride) - highest;
    const Vector weight = exponential(logit);
    total += weight;
    const Scale sigma = scale_of(load(log_scales + k * stride), floor);
    const Vector z = (x - load(means + k * stride)) * sigma.inverse;
    Vector score;
    const Vector joint = logit + (log_density<kFamily, kGradient>(z, &score) - sigma.log);
    best = maximum(best, joint);
    store(logits + k * stride, joint);
    if constexpr (kGradient) {
      store(weights + k * stride, weight);
      store(means + k * stride, score * sigma.inverse);
      // Far out the product is infinite, and a responsibility of zero must make it zero.
      const Vector product = minimum(broadcast(kLargestFloat), z * score);
      store(log_scales + k * stride, (product - 1.0f) * sigma.slope);
    }
  }
  const IntVector nowhere = best == -kInfinity;
  best = select(nowhere, broadcast(-kLargestFloat), best);
  Vector sum = {};
  for (int64_t k = 0; k < C; ++k) {
    const Vector share = exponential(load(logits + k * stride) - best);
    sum += share;
    if constexpr (kGradient) store(logits + k * stride, share);
  }
  if constexpr (kGradient) {
    const Vector factor = scale / sum, of_weights = scale / total;
    *slope = Vector{};
    for (int64_t k = 0; k < C; ++k) {
      const Vector responsibility = factor * load(logits + k * stride);
      store(logits + k * stride, responsibility - of_weights * load(weights + k * stride));
      const Vector pull = responsibility * load(means + k * stride);
      store(means + k * stride, pull);
      store(log_scales + k * stride, responsibility * load(log_scales + k * stride));
      *slope -= pull;
    }
  }
  return select(nowhere, broadcast(-kInfinity), best + (logarithm(sum) - logarithm(total)));
}

// ---------------------------------------------------------------------------------------------------------------------
// Draws.

// F⁻¹(v) at v = (r + ½)·2⁻³², r the random words. By symmetry the distances of v from ½ and from the nearer end of
// (0, 1), both exact, are all that is needed.
template <Family kFamily>
PYAR_INLINE Vector quantile(UnsignedVector words) {
  const IntVector centred = (IntVector)(words ^ 0x80000000u);  // v − ½ = (centred + ½)·2⁻³²
  const IntVector below = centred < 0;
  const IntVector steps = centred ^ below;
  const Vector away = (__builtin_convertvector(steps, Vector) + 0.5f) * 0x1p-32f;
  const Vector tail = (__builtin_convertvector(0x7fffffff - steps, Vector) + 0.5f) * 0x1p-32f;  // ½ − away
  Vector value;
  if constexpr (kFamily == Family::gaussian) {
    // Wichura, "Algorithm AS 241: The Percentage Points of the Normal Distribution", Applied Statistics 37 (1988),
    // PPND7: rational functions of v − ½ and, beyond ½ ± 0.425, of √(−ln tail), to about 7 digits.
    const Vector r = fused_multiply_add(-away, away, broadcast(0.180625f));
    Vector top = fused_multiply_add(broadcast(59.109374720f), r, broadcast(159.29113202f));
    top = fused_multiply_add(top, r, broadcast(50.434271938f));
    top = fused_multiply_add(top, r, broadcast(3.3871327179f));
    Vector bottom = fused_multiply_add(broadcast(67.187563600f), r, broadcast(78.757757664f));
    bottom = fused_multiply_add(bottom, r, broadcast(17.895169469f));
    bottom = fused_multiply_add(bottom, r, broadcast(1.0f));
    const Vector t = square_root(-logarithm(tail)) - 1.6f;  // the tail is at least 2⁻³³: no more than 4.8
    Vector far = fused_multiply_add(broadcast(0.17023821103f), t, broadcast(1.3067284816f));
    far = fused_multiply_add(far, t, broadcast(2.7568153900f));
    far = fused_multiply_add(far, t, broadcast(1.4234372777f));
    Vector under = fused_multiply_add(broadcast(0.12021132975f), t, broadcast(0.73700164250f));
    under = fused_multiply_add(under, t, broadcast(1.0f));
    value = select(away <= 0.425f, away * top / bottom, far / under);
  } else if constexpr (kFamily == Family::logistic) {  // ln(v/(1 − v)) = ln(1 + 2·away/tail)
    const Vector odds = 2.0f * away / tail;
    value = select(odds <= 1.0f, logarithm_of_one_plus(minimum(broadcast(1.0f), odds)), logarithm(1.0f + odds));
  } else {  // −ln(2·tail) = ln(1 + away/tail)
    const Vector odds = away / tail;
    value = select(odds <= 1.0f, logarithm_of_one_plus(minimum(broadcast(1.0f), odds)), -logarithm(2.0f * tail));
  }
  return (Vector)((IntVector)value | (below & (int32_t)0x80000000));
}

// Draws a component, the smallest k with u·S < w_0 + … + w_k, S = Σ_j w_j, w_k = e^(l_k − max l), and then x = μ_k +
// σ_k F⁻¹(v), v from the random words as above. Not finite where there is no distribution to draw from.
//   outputs  [3C], `stride` apart
//   u        in (0, 1)
//   weights  [C], `stride` apart, work space
template <Family kFamily>
PYAR_INLINE Vector draw_mixture(const float* outputs, int64_t stride, int64_t C, Vector u, UnsignedVector words,
                                Vector floor, float* weights) {
  const float* const means = outputs + C * stride;
  const float* const log_scales = means + C * stride;
  Vector highest = load(outputs);
  for (int64_t k = 1; k < C; ++k) highest = maximum(highest, load(outputs + k * stride));
  Vector sum = {};
  for (int64_t k = 0; k < C; ++k) {
    sum += exponential(load(outputs + k * stride) - highest);
    store(weights + k * stride, sum);
  }
  // The greatest weight is 1 and u ≤ 1 − 2⁻²⁴, so that the rounded u·S stays below S.
  const Vector target = u * sum;
  Vector mean = load(means), log_scale = load(log_scales);
  for (int64_t k = 1; k < C; ++k) {
    const IntVector later = load(weights + (k - 1) * stride) <= target;
    mean = select(later, load(means + k * stride), mean);
    log_scale = select(later, load(log_scales + k * stride), log_scale);
  }
  const Vector sigma = select(log_scale > 88.0f, broadcast(kInfinity), exponential(log_scale)) + floor;
  const Vector x = fused_multiply_add(sigma, quantile<kFamily>(words), mean);
  return select(sum > 0.0f, x, sum);
}

}  // namespace pyar::cpu::PYAR_LEVEL
