// DeepNADE's sampling, for one instruction-set level: a tile of walks, each along an order of its own, takes one step
// after the other. A step costs a row of U and of W, the layers, and the output row of one dimension:
//
//   x_d ~ softmax(V_d h + b_d), d = o(s)      a ← a + U_d + W_d[x_d]      h = layers(f(a))
//
// Uria, Murray & Larochelle, "A Deep and Tractable Density Estimator", ICML 2014. The sums of a walk are those of
// forward_kernel.cpp, bit for bit: a sample's log-probability is that of its states.
#include "common/philox.h"
#include "cpu/conditionals.h"
#include "cpu/deep_nade/layers.h"

namespace pyar::cpu::PYAR_LEVEL {
namespace {

// Draws the steps begin … end−1 of walks first … first + n − 1. Returns false if a conditional was not a distribution.
bool sample_tile(const DeepNadeSample& q, const Tile& t, int64_t first, int64_t n) {
  const DeepNadeParameters& m = q.model;
  double total[kDeepNadeRows] = {};
  int64_t walks[kDeepNadeRows];  // those that are under way
  int64_t rows = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t r = first + i;
    const int64_t* order = q.walks.order + r * m.D;
    const uint8_t* given = q.walks.x + r * m.D;
    float* sums = t.sums + i * t.stride;
    start_sums(m, sums);
    memset(q.x + r * m.D, 0, m.D);
    for (int64_t s = 0; s < q.walks.begin[r]; ++s) {
      if (s + 2 < m.D) prefetch_state(m, order[s + 2], given[order[s + 2]]);
      take_state(m, order[s], given[order[s]], sums, nullptr);
      q.x[r * m.D + order[s]] = given[order[s]];
    }
    if (q.walks.begin[r] == q.walks.end[r]) continue;
    read_sums(m, sums, t.units + rows * t.stride);
    walks[rows++] = i;
  }
  for (int64_t step = 0; rows > 0; ++step) {
    const auto dimension = [&](int64_t row) {
      const int64_t r = first + walks[row];
      return q.walks.order[r * m.D + q.walks.begin[r] + step];
    };
    for (int64_t row = 0; row < rows; ++row) {
      prefetch(m.V + dimension(row) * m.P * m.F, m.P == 1 ? m.F : 0);
      prefetch_state(m, dimension(row), m.K == 2 ? 1 : 0);
    }
    const float* h = forward_layers<false>(m, t, rows);
    for (int64_t row = 0; row < rows; ++row) output_row(m, t, row, dimension(row), h + row * t.stride);
    cool(m, t, q.temperature);
    for (int64_t row = 0; row < rows; row += kWidth) {
      float u[kWidth];
      for (int64_t i = 0; i < kWidth; ++i) {
        const int64_t some = row + i < rows ? row + i : row;
        u[i] = philox_uniform(q.seed, static_cast<uint64_t>(q.indices[first + walks[some]]),
                              static_cast<uint32_t>(dimension(some)));
      }
      Vector term;
      const IntVector states = draw_states(t.outputs + row, t.weights + row, kDeepNadeRows, m.P, load(u), &term);
      store_int(t.states + row, states);
      store(t.terms + row, term);
    }
    int64_t going = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t i = walks[row], r = first + i, d = dimension(row), state = t.states[row];
      if (state == kNoState) return false;
      q.x[r * m.D + d] = static_cast<uint8_t>(state);
      total[i] += static_cast<double>(t.terms[row]);
      if (q.walks.begin[r] + step + 1 == q.walks.end[r]) continue;
      take_state(m, d, state, t.sums + i * t.stride, t.units + going * t.stride);
      walks[going++] = i;
    }
    rows = going;
  }
  for (int64_t i = 0; i < n; ++i) q.log_prob[first + i] = static_cast<float>(total[i]);
  return true;
}

}  // namespace

int64_t deep_nade_sample_scratch(const DeepNadeParameters& model) { return Tile(model, kDeepNadeRows, nullptr).size; }

bool deep_nade_sample(const DeepNadeSample& q, int64_t begin, int64_t end, float* scratch) {
  const Tile t(q.model, kDeepNadeRows, scratch);
  // Lanes without a walk are computed too, from some number.
  memset(t.outputs, 0, q.model.P * kDeepNadeRows * sizeof(float));
  const int64_t tiles = (end - begin + kDeepNadeRows - 1) / kDeepNadeRows;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = begin + (end - begin) * i / tiles, last = begin + (end - begin) * (i + 1) / tiles;
    if (!sample_tile(q, t, first, last - first)) return false;
  }
  return true;
}

}  // namespace pyar::cpu::PYAR_LEVEL
