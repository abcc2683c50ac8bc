// DeepNADE along given states, for one instruction-set level.
//
//   logits_s = V_{o(s)} h + b_{o(s)},   h from a = c + Σ_{t < s} (U_{o(t)} + W_{o(t)}[x_{o(t)}])
//
// Uria, Murray & Larochelle, "A Deep and Tractable Density Estimator", ICML 2014. All states being known, the steps of
// a walk hang together by the first layer's sum alone: a block of steps goes through the layers together, and
// neighbouring steps have nearly the same active units.
#include "cpu/conditionals.h"
#include "cpu/deep_nade/layers.h"

namespace pyar::cpu::PYAR_LEVEL {
namespace {

// Steps s0 … s1−1 of walk r, from the sums at s0 to those at s1.
void forward_block(const DeepNadeForward& q, const Tile& t, int64_t r, int64_t s0, int64_t s1) {
  const DeepNadeParameters& m = q.model;
  const uint8_t* x = q.walks.x + r * m.D;
  const int64_t* order = q.walks.order + r * m.D;
  const int64_t rows = s1 - s0;
  read_sums(m, t.sums, t.units);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t d = order[s0 + i];
    if (s0 + i + 2 < m.D) prefetch_state(m, order[s0 + i + 2], x[order[s0 + i + 2]]);
    if (m.P == 1) prefetch(m.V + d * m.F, m.F);
    take_state(m, d, x[d], t.sums, i + 1 < rows ? t.units + (i + 1) * t.stride : nullptr);
    t.states[i] = x[d];
  }
  const float* h = forward_layers<true>(m, t, rows);
  for (int64_t i = 0; i < rows; ++i) output_row(m, t, i, order[s0 + i], h + i * t.stride);
  if (q.outputs != nullptr)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t k = 0; k < m.P; ++k) q.outputs[((r * m.D) + s0 + i) * m.P + k] = t.outputs[k * kDeepNadeRows + i];
  if (q.terms == nullptr) return;
  cool(m, t, q.temperature);
  for (int64_t i = 0; i < kDeepNadeRows; i += kWidth)
    store(t.terms + i, log_probability<false>(t.outputs + i, kDeepNadeRows, m.P, load_int(t.states + i), Vector{}));
  for (int64_t i = 0; i < rows; ++i) q.terms[r * m.D + s0 + i] = t.terms[i];
}

}  // namespace

int64_t deep_nade_panels(int64_t units) { return num_panels(units); }

int64_t deep_nade_packed_floats(int64_t inputs, int64_t units) { return num_panels(units) * (1 + inputs) * kPanel; }

bool deep_nade_pack(const DeepNadeLayer& layer, int64_t begin, int64_t end, float* packed) {
  constexpr int64_t kLine = 16;  // floats of a row that come from memory together
  IntVector wild = {};
  for (int64_t p = begin; p < end; ++p) {
    float* const biases = packed + p * (1 + layer.inputs) * kPanel;
    float* const panel = biases + kPanel;
    const int64_t first = p * kPanel, units = layer.units - first < kPanel ? layer.units - first : kPanel;
    for (int64_t j = 0; j < kPanel; ++j) biases[j] = j < units ? layer.bias[first + j] : 0.0f;
    for (int64_t k0 = 0; k0 < layer.inputs; k0 += kLine) {
      const int64_t k1 = k0 + kLine < layer.inputs ? k0 + kLine : layer.inputs;
      for (int64_t j = 0; j < kPanel; ++j) {
        const float* row = layer.weight + (first + j) * layer.inputs;
        for (int64_t k = k0; k < k1; ++k) panel[k * kPanel + j] = j < units ? row[k] : 0.0f;
      }
    }
    for (int64_t i = 0; i < layer.inputs * kPanel; i += kWidth)
      wild |= ((IntVector)load(panel + i) & 0x7f800000) == 0x7f800000;
  }
  int32_t any = 0;
  for (int i = 0; i < kWidth; ++i) any |= wild[i];
  return any == 0;
}

int64_t deep_nade_forward_scratch(const DeepNadeParameters& model) { return Tile(model, 1, nullptr).size; }

void deep_nade_forward(const DeepNadeForward& q, int64_t begin_block, int64_t end_block, float* scratch) {
  const DeepNadeParameters& m = q.model;
  const Tile t(m, 1, scratch);
  // What no step is in is computed too, from some number.
  memset(t.outputs, 0, m.P * kDeepNadeRows * sizeof(float));
  memset(t.states, 0, kDeepNadeRows * sizeof(int32_t));
  int64_t r = -1, next = 0;  // the sums are those of walk r at step `next`
  for (int64_t block = begin_block; block < end_block; ++block) {
    if (r < 0 || block >= q.blocks[r + 1]) {
      do ++r;
      while (block >= q.blocks[r + 1]);
      start_sums(m, t.sums);
      next = 0;
    }
    const uint8_t* x = q.walks.x + r * m.D;
    const int64_t* order = q.walks.order + r * m.D;
    const int64_t s0 = q.walks.begin[r] + (block - q.blocks[r]) * kDeepNadeRows;
    const int64_t s1 = s0 + kDeepNadeRows < q.walks.end[r] ? s0 + kDeepNadeRows : q.walks.end[r];
    for (; next < s0; ++next) {
      if (next + 2 < m.D) prefetch_state(m, order[next + 2], x[order[next + 2]]);
      take_state(m, order[next], x[order[next]], t.sums, nullptr);
    }
    forward_block(q, t, r, s0, s1);
    next = s1;
  }
}

}  // namespace pyar::cpu::PYAR_LEVEL
