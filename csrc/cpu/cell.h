// The recurrent cell, apart from everything around it.
//
// The kernels' loops know of a cell only this much; another one (GRU, plain RNN) is another struct:
//   kGates            sums per hidden unit. Each starts from the input's table row (or, above the first layer, from the
//                     bias and the weights times the layer below) and gathers the recurrent weights times h.
//   forward(sum, c)   turns a vector of units' sums into their new h, and updates c, what else the cell remembers.
//   backward(…)       for training: from the gradients of h and c after the step to those of the sums and of c before
//   it.
// A cell whose candidate needs the recurrent part by itself (GRU's r · (W_hn h + b_hn)) takes a fourth sum for it, with
// zero weights for the part it leaves out when packing. Draw, feedback, output layer and threading stay as they are.
#pragma once

#include "cpu/simd.h"

namespace pyar::cpu::PYAR_LEVEL {

// σ(x) from e = e^−|x|: e/(1 + e) for x < 0, else 1/(1 + e).
PYAR_INLINE Vector cell_sigmoid(Vector x) {
  Vector power, t;
  split_exponential((Vector)((IntVector)x | (int32_t)0x80000000), &power, &t);
  const Vector e = fused_multiply_add(power, t, power);
  return (x < 0.0f ? e : broadcast(1.0f)) / (1.0f + e);
}

// tanh(x) = −sign(x)·m/(2 + m) with m = e^−2|x| − 1, which is accurate near zero too.
PYAR_INLINE Vector cell_tanh(Vector x) {
  Vector power, t;
  const Vector negative = (Vector)((IntVector)x | (int32_t)0x80000000);
  split_exponential(negative + negative, &power, &t);
  const Vector m = fused_multiply_add(power, t, power - 1.0f);
  const Vector value = m / (2.0f + m);
  return (Vector)(((IntVector)value & 0x7fffffff) | ((IntVector)x & (int32_t)0x80000000));
}

struct LstmCell {
  static constexpr int kGates = 4;

  // sum holds the four pre-activations on entry, the gates i, f, g, o on return; c is updated; returns h.
  static PYAR_INLINE Vector forward(Vector (&sum)[kGates], Vector* c) {
    sum[0] = cell_sigmoid(sum[0]);
    sum[1] = cell_sigmoid(sum[1]);
    sum[2] = cell_tanh(sum[2]);
    sum[3] = cell_sigmoid(sum[3]);
    *c = fused_multiply_add(sum[1], *c, sum[0] * sum[2]);
    return sum[3] * cell_tanh(*c);
  }

  // gate holds i, f, g, o on entry and the gradients of their pre-activations on return; dh is the gradient of h, *dc
  // that of c after the step from all later steps, on return that of c before the step.
  static PYAR_INLINE void backward(Vector (&gate)[kGates], Vector c_before, Vector c_after, Vector dh, Vector* dc) {
    const Vector i = gate[0], f = gate[1], g = gate[2], o = gate[3];
    const Vector t = cell_tanh(c_after);
    const Vector dc_all = fused_multiply_add(dh * o, 1.0f - t * t, *dc);
    gate[0] = (dc_all * g) * (i * (1.0f - i));
    gate[1] = (dc_all * c_before) * (f * (1.0f - f));
    gate[2] = (dc_all * i) * (1.0f - g * g);
    gate[3] = (dh * t) * (o * (1.0f - o));
    *dc = dc_all * f;
  }
};

}  // namespace pyar::cpu::PYAR_LEVEL
