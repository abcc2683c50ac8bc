// The activations of dense layers, kWidth units at a time.
#pragma once

#include "cpu/activation.h"
#include "cpu/simd.h"

namespace pyar::cpu::PYAR_LEVEL {

PYAR_INLINE Vector activate(Activation f, Vector a) {
  switch (f) {
    case Activation::sigmoid:
      return sigmoid(a);
    case Activation::tanh:
      return hyperbolic_tangent(a);
    default:
      return select(a <= 0.0f, Vector{}, a);  // not maximum(): NaN must stay NaN, and no zero is a negative one
  }
}

}  // namespace pyar::cpu::PYAR_LEVEL
