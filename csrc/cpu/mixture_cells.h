// Mixtures over a grid, kWidth samples at a time: a value has the probability of its cell,
//
//   P(x) = Σ_k π_k [F(z_k + ½ step/σ_k) − F(z_k − ½ step/σ_k)],   z_k = (x − μ_k)/σ_k
//
// where the cell of the lowest value reaches to −∞ and that of the highest to +∞ (pyar.reference.mixtures, whose
// formulas these are: no difference of two near numbers is taken). Outputs are as in mixture.h.
#pragma once

#include "cpu/mixture.h"

namespace pyar::cpu::PYAR_LEVEL {

// The grids of the lanes.
struct CellVectors {
  Vector step, low, high;
};

// 1 − e^−d for d ≥ 0, exact near zero.
PYAR_INLINE Vector one_minus_exponential(Vector d) {
  Vector power, t;
  split_exponential(-d, &power, &t);
  return (1.0f - power) - power * t;
}

// ln(1 − e^−d) for d > 0; log_d, its logarithm, tells also those that are too small.
PYAR_INLINE Vector log_one_minus_exponential(Vector d, Vector log_d) {
  return select(d < 1e-4f, fused_multiply_add(broadcast(-0.5f), d, log_d), logarithm(one_minus_exponential(d)));
}

// ln(1 − e^l) for l ≤ −½: no logarithm of a number near zero.
PYAR_INLINE Vector log_of_rest(Vector l) { return logarithm(1.0f - exponential(l)); }

// ln Φ(z). With y = |z|/√2 and t = 2/(2 + y), ln erfc(y) = ln t + q(t) − y², q a polynomial in 2t − 1 fitted to 1e-8.
PYAR_INLINE Vector log_normal_cdf(Vector z) {
  const Vector t = 2.0f / fused_multiply_add(broadcast(0.707106781f), absolute(z), broadcast(2.0f));
  const Vector s = fused_multiply_add(broadcast(2.0f), t, broadcast(-1.0f));
  Vector q = broadcast(-8.72838103e-05f);
  q = fused_multiply_add(q, s, broadcast(8.00073815e-06f));
  q = fused_multiply_add(q, s, broadcast(5.73766372e-04f));
  q = fused_multiply_add(q, s, broadcast(-2.27910966e-04f));
  q = fused_multiply_add(q, s, broadcast(-2.28876524e-03f));
  q = fused_multiply_add(q, s, broadcast(1.79406625e-03f));
  q = fused_multiply_add(q, s, broadcast(8.80882537e-03f));
  q = fused_multiply_add(q, s, broadcast(-9.88001932e-03f));
  q = fused_multiply_add(q, s, broadcast(-4.68936406e-02f));
  q = fused_multiply_add(q, s, broadcast(4.73438876e-02f));
  q = fused_multiply_add(q, s, broadcast(6.72643155e-01f));
  q = fused_multiply_add(q, s, broadcast(-6.71794092e-01f));
  const Vector below = fused_multiply_add(-0.5f * z, z, (logarithm(t) + q) - 0.693147181f);
  return select(z <= 0.0f, below, log_of_rest(below));
}

// ln F(z).
template <Family kFamily>
PYAR_INLINE Vector log_cdf(Vector z) {
  if constexpr (kFamily == Family::gaussian) return log_normal_cdf(z);
  const Vector magnitude = absolute(z);
  if constexpr (kFamily == Family::logistic)
    return select(z < 0.0f, z, Vector{}) - logarithm_of_one_plus(exponential(-magnitude));
  const Vector below = -magnitude - 0.693147181f;
  return select(z < 0.0f, below, log_of_rest(below));
}

// ln(F(z + half) − F(z − half)), half > 0.
template <Family kFamily>
PYAR_INLINE Vector log_cell(Vector z, Vector half, Vector log_half) {
  const Vector log_width = log_half + 0.693147181f;
  if constexpr (kFamily == Family::logistic)  // σ(b) − σ(a) = σ(b) σ(−a) (1 − e^(a−b))
    return (log_cdf<kFamily>(z + half) + log_cdf<kFamily>(half - z)) +
           log_one_minus_exponential(2.0f * half, log_width);
  const Vector m = -absolute(z);
  if constexpr (kFamily == Family::laplace) {
    const Vector upper = m + half;
    const Vector beside = upper - 0.693147181f + log_one_minus_exponential(2.0f * half, log_width);
    // The cell holds the peak.
    const Vector both = one_minus_exponential(maximum(Vector{}, half - m)) + one_minus_exponential(upper);
    const Vector small = fused_multiply_add(broadcast(-0.5f), half + m * m / half, log_half);
    return select(upper < 0.0f, beside, select(half < 1e-4f, small, logarithm(0.5f * both)));
  }
  // Gaussian. A narrow cell is the integral φ(m) half ∫ e^(−m half t − ½ half² t²) dt over [−1, 1], by the
  // Gauss–Legendre rule of ten nodes; a wide one the difference of cumulative distributions, far from each other.
  constexpr float kNodes[] = {0.148874339f, 0.433395394f, 0.679409568f, 0.865063367f, 0.973906529f};
  constexpr float kWeights[] = {0.295524225f, 0.269266719f, 0.219086363f, 0.149451349f, 0.0666713443f};
  const IntVector narrow = (half < 1.0f) & (-m * half < 3.0f);
  const Vector reach = select(narrow, half, broadcast(0.5f)), centre = select(narrow, m, Vector{});
  Vector integral = {};
  for (int i = 0; i < 5; ++i) {
    const Vector node = kNodes[i] * reach;
    const Vector e = exponential(absolute(centre * node));
    integral = fused_multiply_add(kWeights[i] * (e + 1.0f / e), exponential(-0.5f * node * node), integral);
  }
  const Vector inner = fused_multiply_add(-0.5f * m, m, broadcast(-0.918938533f)) + (logarithm(integral) + log_half);
  if (!any(~narrow)) return inner;
  // Far out m ± half round to one number; the exact difference is never below that of the exponents.
  const Vector top = log_normal_cdf(m + half);
  const Vector apart = maximum(top - log_normal_cdf(m - half), -2.0f * m * half);
  const Vector outer = top + logarithm(one_minus_exponential(apart));
  return select(narrow, inner, outer);
}

// ln P(x) of the lanes, x a value of their grids.
//   outputs  [3C], `stride` apart; the logits are overwritten
template <Family kFamily>
PYAR_INLINE Vector mixture_log_probability(float* outputs, int64_t stride, int64_t C, Vector x, Vector floor,
                                           const CellVectors& cells) {
  float* const logits = outputs;
  const float* const means = outputs + C * stride;
  const float* const log_scales = means + C * stride;
  const Vector half_step = 0.5f * cells.step;
  const Vector log_half_step = logarithm(half_step);
  const IntVector lowest = x<cells.low + half_step, highest = x> cells.high - half_step;
  const bool at_edge = any(lowest | highest);
  Vector most = load(logits);
  for (int64_t k = 1; k < C; ++k) most = maximum(most, load(logits + k * stride));
  Vector total = {}, best = broadcast(-kInfinity);
  for (int64_t k = 0; k < C; ++k) {
    const Vector logit = load(logits + k * stride) - most;
    total += exponential(logit);
    const Scale sigma = scale_of(load(log_scales + k * stride), floor);
    const Vector z = (x - load(means + k * stride)) * sigma.inverse;
    const Vector half = half_step * sigma.inverse;
    Vector part = log_cell<kFamily>(z, half, log_half_step - sigma.log);
    if (at_edge) {
      part = select(highest, log_cdf<kFamily>(half - z), part);
      part = select(lowest, log_cdf<kFamily>(z + half), part);
      part = select(lowest & highest, 0.0f * part, part);
    }
    const Vector joint = logit + part;
    best = maximum(best, joint);
    store(logits + k * stride, joint);
  }
  const IntVector nowhere = best == -kInfinity;
  best = select(nowhere, broadcast(-kLargestFloat), best);
  Vector sum = {};
  for (int64_t k = 0; k < C; ++k) sum += exponential(load(logits + k * stride) - best);
  return select(nowhere, broadcast(-kInfinity), best + (logarithm(sum) - logarithm(total)));
}

}  // namespace pyar::cpu::PYAR_LEVEL
