// The nonlinearities one number at a time, as the GPU kernels compute them (the CPU's vector forms are in cpu/simd.h).
#pragma once

#include <math.h>

#include "common/portable.h"

namespace pyar {

// 1 / d for d in [1, 2].
PYAR_HOST_DEVICE float reciprocal_in_one_two(float d) {
#if defined(__CUDA_ARCH__)
  // The hardware's approximation and one Newton step; no special cases to catch in this range. NaN stays NaN.
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
  return fmaf(r, fmaf(-d, r, 1.0f), r);
#else
  return 1.0f / d;
#endif
}

// σ(x) = 1 / (1 + e^−x) from e^−|x|, so that nothing overflows and small values keep their relative accuracy.
PYAR_HOST_DEVICE float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  const float reciprocal = reciprocal_in_one_two(1.0f + e);
  return x < 0.0f ? e * reciprocal : reciprocal;
}

// ln σ(x) = min(x, 0) − ln(1 + e^−|x|): the log-probability of state 1 at logit x, of state 0 at logit −x.
PYAR_HOST_DEVICE float log_sigmoid(float x) {
  const float below = x > 0.0f ? 0.0f : x;  // NaN stays NaN
  return below - log1pf(expf(-fabsf(x)));
}

// ∂/∂a of anything through h = σ(a), where h is at hand: h (1 − h).
PYAR_HOST_DEVICE float sigmoid_derivative(float h) { return h * (1.0f - h); }

}  // namespace pyar
