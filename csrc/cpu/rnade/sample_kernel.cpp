// RNADE's sampling, for one instruction-set level: a tile of samples takes one step after the other. Two uniforms of
// (seed, sample, dimension) draw a component and, with all bits of a second word, its value:
//
//   k ~ π,   x_d = μ_k + σ_k F⁻¹(v)
//
// The sums are those of forward_kernel.cpp, bit for bit: a sample's log-density is that of its values.
#include "common/philox.h"
#include "cpu/conditionals.h"
#include "cpu/rnade/step.h"

namespace pyar::cpu::PYAR_LEVEL {
namespace {

constexpr int64_t kPhiloxLanes = 16;

// philox_block() with `number` in the counter's second word, which tells a dimension's words apart.
PYAR_INLINE PhiloxBlock numbered_block(uint64_t seed, uint64_t sample, uint32_t dimension, uint32_t number) {
  const PhiloxBlock counter = {
      {dimension >> 2, number, static_cast<uint32_t>(sample), static_cast<uint32_t>(sample >> 32)}};
  return philox4x32_10(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// The random words of a tile's samples for the four dimensions of one Philox block.
struct Words {
  uint32_t component[4][RnadeTile::kLanes], value[4][RnadeTile::kLanes];
  int64_t block = -1;

  // Fills in those of dimension d for samples first … first + lanes − 1 of the seed, and returns its place.
  int64_t find(uint64_t seed, uint64_t first, int64_t lanes, int64_t d) {
    if (block != d / 4) {
      fill(seed, first, lanes, d, 0, component);
      fill(seed, first, lanes, d, 1, value);
      block = d / 4;
    }
    return d % 4;
  }

  static void fill(uint64_t seed, uint64_t first, int64_t lanes, int64_t d, uint32_t number,
                   uint32_t (&words)[4][RnadeTile::kLanes]) {
    for (int64_t start = 0; start < lanes; start += kPhiloxLanes) {
      PhiloxBlock blocks[kPhiloxLanes];
      for (int64_t i = 0; i < kPhiloxLanes; ++i)
        blocks[i] = numbered_block(seed, first + static_cast<uint64_t>(start + i), static_cast<uint32_t>(d), number);
      const int64_t count = lanes - start < kPhiloxLanes ? lanes - start : kPhiloxLanes;
      for (int64_t w = 0; w < 4; ++w)
        for (int64_t i = 0; i < count; ++i) words[w][start + i] = blocks[i].word[w];
    }
  }
};

PYAR_INLINE UnsignedVector load_words(const uint32_t* p) {
  UnsignedVector v;
  memcpy(&v, p, sizeof v);
  return v;
}

// Samples first … first + n − 1, in N vectors. Returns false if a conditional was no distribution.
template <int N>
bool sample_tile(const RnadeSample& q, const RnadeTile& t, int64_t first, int64_t n) {
  const RnadeParameters& m = q.model;
  constexpr int64_t lanes = N * kWidth;
  double total[RnadeTile::kLanes] = {};
  Words words;
  memset(t.values, 0, lanes * sizeof(float));
  for (int64_t d = 0; d < m.D; ++d) {
    take_value<N>(m, d, t.values, t.a, t.h);
    if (d < q.num_given) {
      for (int64_t i = 0; i < n; ++i) t.values[i] = q.given[(first + i) * q.num_given + d];
    } else {
      output_rows<N>(m, d, N * kWidth, t.h, t.outputs);
      const int64_t dim = q.dims == nullptr ? d : q.dims[d];
      const int64_t w = words.find(q.seed, q.first_index + static_cast<uint64_t>(first), lanes, dim);
      with_family(m.family, [&](auto family) __attribute__((always_inline)) {
        for (int64_t i = 0; i < lanes; i += kWidth)
          store(t.values + i, draw_mixture<decltype(family)::value>(
                                  t.outputs + i, lanes, m.C, uniforms_from_words(words.component[w] + i),
                                  load_words(words.value[w] + i), broadcast(m.min_scale), t.weights + i));
      });
      log_densities(m, N * kWidth, t.values, t.outputs, t.terms);
      for (int64_t i = 0; i < n; ++i) {
        if (!(fabsf(t.values[i]) <= kLargestFloat)) return false;
        total[i] += static_cast<double>(t.terms[i]);
      }
    }
    for (int64_t i = 0; i < n; ++i) q.x[(first + i) * m.D + d] = t.values[i];
  }
  for (int64_t i = 0; i < n; ++i) q.log_prob[first + i] = static_cast<float>(total[i]);
  return true;
}

}  // namespace

int64_t rnade_sample_scratch(const RnadeParameters& model) { return RnadeTile(model, nullptr).size; }

bool rnade_sample(const RnadeSample& q, int64_t begin, int64_t end, float* scratch) {
  const RnadeTile t(q.model, scratch);
  bool good = true;
  for_tiles(begin, end, [&](auto tile, int64_t first, int64_t n) {
    good = good && sample_tile<decltype(tile)::vectors>(q, t, first, n);
  });
  return good;
}

}  // namespace pyar::cpu::PYAR_LEVEL
