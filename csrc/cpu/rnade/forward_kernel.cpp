// RNADE's log-density of given values, for one instruction-set level: ln p(x) = Σ_d ln p(x_d | x_<d), the conditionals
// those of step.h.
#include "cpu/rnade/step.h"

namespace pyar::cpu::PYAR_LEVEL {
namespace {

// Samples first … first + n − 1, in N vectors.
template <int N>
void forward_tile(const RnadeForward& q, const RnadeTile& t, int64_t first, int64_t n) {
  const RnadeParameters& m = q.model;
  double total[RnadeTile::kLanes] = {};
  memset(t.values, 0, RnadeTile::kLanes * sizeof(float));  // lanes without a sample follow along
  for (int64_t d = 0; d < m.D; ++d) {
    take_value<N>(m, d, t.values, t.a, t.h);
    output_rows<N>(m, d, N * kWidth, t.h, t.outputs);
    for (int64_t i = 0; i < n; ++i) t.values[i] = q.x[(first + i) * m.D + d];
    log_densities(m, N * kWidth, t.values, t.outputs, t.terms);
    for (int64_t i = 0; i < n; ++i) total[i] += static_cast<double>(t.terms[i]);
    if (q.conditional != nullptr)
      for (int64_t i = 0; i < n; ++i) q.conditional[(first + i) * m.D + d] = t.terms[i];
  }
  if (q.log_prob != nullptr)
    for (int64_t i = 0; i < n; ++i) q.log_prob[first + i] = static_cast<float>(total[i]);
}

}  // namespace

int64_t rnade_forward_scratch(const RnadeParameters& model) { return RnadeTile(model, nullptr).size; }

void rnade_forward(const RnadeForward& q, int64_t begin, int64_t end, float* scratch) {
  const RnadeTile t(q.model, scratch);
  for_tiles(begin, end,
            [&](auto tile, int64_t first, int64_t n) { forward_tile<decltype(tile)::vectors>(q, t, first, n); });
}

}  // namespace pyar::cpu::PYAR_LEVEL
