// The output head of image models, for a few samples at one pixel: from features to states.
//
//   a = w + W relu(f),   h_c = relu(a + Σ_{j<c} E_cj[x_j]),   outputs_c = b_c + V_c h_c
//
// The outputs are logits, or a mixture of logistic distributions; the equations are in pyar.reference.plane.
#pragma once

#include "common/philox.h"
#include "cpu/conditionals.h"
#include "cpu/grid/grid.h"
#include "cpu/grid/panels.h"

namespace pyar::cpu::PYAR_LEVEL {

// The head's parameters packed, at `base`; null: only `size`, in floats, is of use.
struct PackedHead {
  float* W;
  float* V;                // of every channel
  int64_t units, outputs;  // panels
  int64_t size;

  PackedHead(const GridHead& head, float* base) {
    units = panels_of(vectors_of(head.M));
    outputs = panels_of(vectors_of(head.P));
    const int64_t first = units * head.F * kPanelFloats;
    W = base;
    V = base == nullptr ? nullptr : base + first;
    size = first + head.C * channel_size(head);
  }

  int64_t channel_size(const GridHead& head) const { return outputs * head.M * kPanelFloats; }

  void pack(const GridHead& head) const {
    const auto below = [](int64_t count) { return [count](int64_t lane) { return lane < count ? lane : -1; }; };
    pack_panels(head.W, head.F, 1, units, below(head.M), W);
    for (int64_t c = 0; c < head.C; ++c)
      pack_panels(head.V + c * head.P * head.M, head.M, 1, outputs, below(head.P), V + c * channel_size(head));
  }
};

// Work space for n samples.
struct HeadSpace {
  float* active;     // [n, F], relu(f)
  float* a;          // [n, M]
  float* h;          // [n, M]
  float* outputs;    // [n, P]
  float* logits;     // [max(P, K), lanes]
  float* weights;    // [max(P, K), lanes]
  float* mixture;    // [6, mixtures, lanes]
  double* log_prob;  // [lanes], in nats, of what is drawn so far
  int64_t lanes;     // n rounded up to 16
  int64_t size;

  HeadSpace(const GridHead& head, int64_t n, float* base) {
    lanes = (n + 15) / 16 * 16;
    int64_t used = 0;
    const auto floats = [&](int64_t count) {
      const int64_t at = used;
      used += (count + 15) / 16 * 16;
      return base == nullptr ? nullptr : base + at;
    };
    const int64_t rows = head.P > head.K ? head.P : head.K;
    active = floats(n * head.F);
    a = floats(n * head.M);
    h = floats(n * head.M);
    outputs = floats(n * head.P);
    logits = floats(rows * lanes);
    weights = floats(rows * lanes);
    mixture = floats(6 * head.mixtures * lanes);
    log_prob = reinterpret_cast<double*>(floats(2 * lanes));
    size = used;
  }
};

// log p(k) of every state from the outputs of a mixture of logistic distributions, kWidth samples at a time:
//   σ(b) − σ(a) = (1 − e^(a − b)) σ(b) σ(−a),  a and b the standardised ends of the state's interval
//   logits   outputs [3·n, stride] on entry, log p [K, stride] on return
//   mixture  [6, n, stride], work space
inline void mixture_log_probabilities(const GridHead& head, float* logits, float* mixture, int64_t stride) {
  constexpr float kLeastLogScale = -7.0f;
  const int64_t n = head.mixtures;
  float *weight = mixture, *mean = weight + n * stride, *inverse = mean + n * stride;
  float *edge = inverse + n * stride, *log_below = edge + n * stride, *term = log_below + n * stride;
  const float step = 2.0f / static_cast<float>(head.K - 1);
  Vector highest = load(logits);
  for (int64_t i = 1; i < n; ++i) highest = maximum(highest, load(logits + i * stride));
  Vector total = {};
  for (int64_t i = 0; i < n; ++i) total += exponential(load(logits + i * stride) - highest);
  const Vector norm = highest + logarithm(total);
  for (int64_t i = 0; i < n; ++i) {
    const Vector log_scale = maximum(broadcast(kLeastLogScale), load(logits + (2 * n + i) * stride));
    const Vector scale = exponential(minimum(broadcast(80.0f), -log_scale));
    // log(1 − e^−width), width = step/s.
    Vector power, t;
    split_exponential(-step * scale, &power, &t);
    const Vector between = maximum(broadcast(1.2e-38f), -fused_multiply_add(power, t, power - 1.0f));
    store(weight + i * stride, load(logits + i * stride) - norm);
    store(edge + i * stride, logarithm(between));
    store(mean + i * stride, load(logits + (n + i) * stride));
    store(inverse + i * stride, scale);
  }
  float* between = edge;
  const auto log_sigmoid = [](Vector x) __attribute__((always_inline)) {
    return minimum(x, Vector{}) - logarithm_of_one_plus(exponential(-absolute(x)));
  };
  for (int64_t k = 0; k < head.K; ++k) {
    const float upper = (static_cast<float>(k) + 0.5f) * step - 1.0f;
    Vector most = broadcast(-3.4028234e38f);
    for (int64_t i = 0; i < n; ++i) {
      // log σ(−a) waits from the state before, whose upper end is this one's lower.
      Vector value = load(weight + i * stride);
      if (k > 0) value += load(log_below + i * stride);
      if (k > 0 && k < head.K - 1) value += load(between + i * stride);
      if (k < head.K - 1) {
        const Vector b = (upper - load(mean + i * stride)) * load(inverse + i * stride);
        const Vector log_above = log_sigmoid(b);
        value += log_above;
        store(log_below + i * stride, log_sigmoid(-b));
      }
      store(term + i * stride, value);
      most = maximum(most, value);
    }
    Vector sum = {};
    for (int64_t i = 0; i < n; ++i) sum += exponential(load(term + i * stride) - most);
    store(logits + k * stride, most + logarithm(sum));
  }
}

// Draws the channels of a pixel for samples first … first + n − 1 of the call, or takes what is given; adds what is
// drawn to space.log_prob. False if a conditional is no distribution.
//   features  [n, F]
inline bool draw_pixel(const GridHead& head, const PackedHead& packed, const GridSample& sample, const HeadSpace& space,
                       int64_t pixel, int64_t first, int64_t n, const float* features) {
  const int64_t d0 = pixel * head.C, lanes = space.lanes, F = head.F, M = head.M, P = head.P;
  for (int64_t c = 0; c < head.C && d0 + c < sample.num_given; ++c)
    for (int64_t i = 0; i < n; ++i)
      sample.x[(first + i) * sample.D + d0 + c] = sample.given[(first + i) * sample.num_given + d0 + c];
  if (d0 + head.C <= sample.num_given) return true;
  for (int64_t i = 0; i < n * F; i += kWidth)
    store_units(space.active, i, n * F, maximum(Vector{}, load_units(features, i, n * F)));
  add_bias(n, nullptr, head.w, space.a, M);
  const Operand active = {space.active, F, F, 0};
  add_products(n, &active, 1, F, packed.W, space.a, M, M, Add::to_what_is_there);
  for (int64_t c = 0; c < head.C; ++c) {
    const int64_t d = d0 + c;
    if (d < sample.num_given) continue;
    for (int64_t i = 0; i < n; ++i) {
      const uint8_t* x = sample.x + (first + i) * sample.D + d0;
      for (int64_t unit = 0; unit < M; unit += kWidth) {
        Vector sum = load_units(space.a + i * M, unit, M);
        for (int64_t j = 0; j < c; ++j)
          sum += load_units(head.E + ((c * (c - 1) / 2 + j) * head.K + x[j]) * M, unit, M);
        store_units(space.h + i * M, unit, M, maximum(Vector{}, sum));
      }
    }
    add_bias(n, nullptr, head.b + c * P, space.outputs, P);
    const Operand hidden = {space.h, M, M, 0};
    add_products(n, &hidden, 1, M, packed.V + c * packed.channel_size(head), space.outputs, P, P,
                 Add::to_what_is_there);
    for (int64_t i = 0; i < lanes; ++i) {
      const float* from = space.outputs + (i < n ? i : n - 1) * P;
      for (int64_t k = 0; k < P; ++k) space.logits[k * lanes + i] = from[k];
    }
    const Vector temperature = broadcast(sample.temperature);
    for (int64_t i = 0; i < n; i += kWidth) {
      float* l = space.logits + i;
      const int64_t rows = head.mixtures > 0 ? head.K : P;
      if (head.mixtures > 0) mixture_log_probabilities(head, l, space.mixture + i, lanes);
      if (sample.temperature != 1.0f)
        for (int64_t k = 0; k < rows; ++k) store(l + k * lanes, load(l + k * lanes) / temperature);
      float u[kWidth], terms[kWidth];
      int32_t states[kWidth];
      const auto dimension = static_cast<uint32_t>(sample.dims == nullptr ? d : sample.dims[d]);
      for (int lane = 0; lane < kWidth; ++lane) {
        const int64_t row = first + (i + lane < n ? i + lane : n - 1);
        u[lane] = philox_uniform(sample.seed, static_cast<uint64_t>(sample.first_index + row), dimension);
      }
      Vector term;
      const IntVector drawn = draw_states(l, space.weights + i, lanes, rows, load(u), &term);
      store_int(states, drawn);
      store(terms, term);
      for (int64_t lane = 0; lane < kWidth && i + lane < n; ++lane) {
        if (states[lane] == kNoState) return false;
        sample.x[(first + i + lane) * sample.D + d] = static_cast<uint8_t>(states[lane]);
        space.log_prob[i + lane] += static_cast<double>(terms[lane]);
      }
    }
  }
  return true;
}

}  // namespace pyar::cpu::PYAR_LEVEL
