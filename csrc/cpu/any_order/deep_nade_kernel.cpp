// DeepNADE's walks, for one instruction-set level: all dimensions have the same K states.
//
//   p(x_d | x_S) = softmax(V_d h + b_d)      a ← a + (U_d + W_d[x_d])
//
// Uria, Murray & Larochelle, "A Deep and Tractable Density Estimator", ICML 2014.
#include "common/philox.h"
#include "cpu/any_order/deep_nade.h"
#include "cpu/any_order/walk.h"
#include "cpu/conditionals.h"

namespace pyar::cpu::PYAR_LEVEL {
namespace {

struct DeepNadeRules {
  using Model = DeepNadeParameters;

  static PYAR_INLINE void prefetch_inputs(const Model& m, int64_t d, int64_t state) {
    prefetch(m.U + d * m.H, m.H);
    if (state > 0) prefetch(m.W + (d * (m.K - 1) + state - 1) * m.H, m.H);
  }

  static PYAR_INLINE void prefetch_outputs(const Model& m, int64_t d) {
    if (m.P == 1) prefetch(m.V + d * m.F, m.F);
  }

  static PYAR_INLINE void prefetch_column(const Model& m, int64_t d) {
    prefetch_outputs(m, d);
    prefetch_inputs(m, d, m.K == 2 ? 1 : 0);
  }

  static PYAR_INLINE void take(const Model& m, int64_t d, int64_t state, float* a, float* h) {
    add_state(m, m.U + d * m.H, m.W + d * (m.K - 1) * m.H, state, a, h);
  }

  template <class Visit>
  static PYAR_INLINE void for_chunks(const Model&, const WalkTile&, int64_t rows, const Visit& visit) {
    int32_t list[kWidth];
    for (int64_t row = 0; row < rows; row += kWidth) {
      const int64_t count = rows - row < kWidth ? rows - row : kWidth;
      for (int64_t i = 0; i < count; ++i) list[i] = static_cast<int32_t>(row + i);
      visit(list, count);
    }
  }

  // t.outputs, of the first `count` lanes.
  static PYAR_INLINE void outputs(const Model& m, const WalkTile& t, const float* h, const int32_t* list,
                                  int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t first = t.dims[list[i]] * m.P;
      output_lane(m, t, i, m.V + first * m.F, m.b + first, m.P, h + list[i] * t.stride);
    }
  }

  static void evaluate(const DeepNadeForward& q, const WalkTile& t, const float* h, const int32_t* list,
                       int64_t count) {
    const Model& m = q.model;
    outputs(m, t, h, list, count);
    int32_t states[kWidth] = {};
    for (int64_t i = 0; i < count; ++i) {
      const int64_t r = t.walks[list[i]];
      states[i] = q.walks.x[r * m.D + t.dims[list[i]]];
      if (q.outputs == nullptr) continue;
      float* out = q.outputs + (r * m.D + t.steps[list[i]]) * m.P;
      for (int64_t k = 0; k < m.P; ++k) out[k] = t.outputs[k * kWidth + i];
    }
    if (q.terms == nullptr) return;
    cool(t, m.P, q.temperature);
    float terms[kWidth];
    store(terms, log_probability<false>(t.outputs, kWidth, m.P, load_int(states), Vector{}));
    for (int64_t i = 0; i < count; ++i) q.terms[t.walks[list[i]] * m.D + t.dims[list[i]]] = terms[i];
  }

  static bool draw(const DeepNadeSample& q, const WalkTile& t, const float* h, const int32_t* list, int64_t count) {
    const Model& m = q.model;
    outputs(m, t, h, list, count);
    cool(t, m.P, q.temperature);
    float u[kWidth] = {};
    for (int64_t i = 0; i < count; ++i)
      u[i] = philox_uniform(q.seed, static_cast<uint64_t>(q.indices[t.walks[list[i]]]),
                            static_cast<uint32_t>(t.dims[list[i]]));
    Vector term;
    int32_t states[kWidth];
    float terms[kWidth];
    store_int(states, draw_states(t.outputs, t.weights, kWidth, m.P, load(u), &term));
    store(terms, term);
    for (int64_t i = 0; i < count; ++i) {
      if (states[i] == kNoState) return false;
      const int64_t at = t.walks[list[i]] * m.D + t.dims[list[i]];
      q.x[at] = static_cast<uint8_t>(states[i]);
      q.terms[at] = terms[i];
    }
    return true;
  }
};

}  // namespace

int64_t deep_nade_forward_scratch(const DeepNadeParameters& model) { return WalkTile(model, 1, nullptr).size; }

void deep_nade_forward(const DeepNadeForward& q, int64_t begin_step, int64_t end_step, float* scratch) {
  forward_walks<DeepNadeRules>(q, begin_step, end_step, scratch);
}

int64_t deep_nade_sample_scratch(const DeepNadeParameters& model) { return WalkTile(model, kTileWalks, nullptr).size; }

bool deep_nade_sample(const DeepNadeSample& q, int64_t begin, int64_t end, float* scratch) {
  return sample_walks<DeepNadeRules>(q, begin, end, scratch);
}

}  // namespace pyar::cpu::PYAR_LEVEL
