// MADE's sampling, for one instruction-set level: every unit is computed once.
//
//   h¹ = f(c + Σ_i W_i[x_i])   hˡ = f(biasˡ + weightˡ hˡ⁻¹)   logits_d = b_d + Σ_{i<d} A_i[x_i] + V_d h^L
//
// Germain, Gregor, Murray & Larochelle, "MADE: Masked Autoencoder for Distribution Estimation", ICML 2015. A unit of
// degree m is final once the dimensions before m are drawn: step d computes the slices of degree d in all layers, then
// output d, from which it draws x_d. Steps are taken in blocks: at its start, a block's units and outputs add up all
// that earlier blocks have made, which is a matrix product of many rows, and step by step the little that is left.
//
// The samples of a tile lie in the lanes of vectors, and every sum is one chain per lane in an order that depends on
// the model's sizes alone: a sample's bits are those of every batch, tile, thread count and level with fused
// multiply-add.
#include "common/draw.h"
#include "common/philox.h"
#include "cpu/conditionals.h"
#include "cpu/made/kernel.h"
#include "cpu/made/products.h"

namespace pyar::cpu::PYAR_LEVEL {
namespace {

constexpr int64_t kBlockUnits = 48;    // units of the largest layer in a block, about
constexpr int64_t kBlockOutputs = 64;  // outputs in a block, at most, if it has several steps
constexpr int64_t kMostSteps = 16;     // steps in a block, at most
constexpr int64_t kPhiloxLanes = 16;
constexpr int64_t kLogarithmSteps = 16;  // steps of two states that share a logarithm: a product of at most 2¹⁶

typedef uint8_t StateVector __attribute__((vector_size(kWidth)));

int64_t widest_layer(const MadeParameters& m) {
  int64_t widest = 0;
  for (int64_t l = 0; l < m.num_layers; ++l) widest = m.layers[l].units > widest ? m.layers[l].units : widest;
  return widest;
}

// Steps in a block: a function of the model's sizes alone, since the order of additions follows from it.
int64_t block_steps(const MadeParameters& m) {
  int64_t steps = kBlockUnits * m.D / widest_layer(m);
  if (steps > kBlockOutputs / m.P) steps = kBlockOutputs / m.P;
  return steps < 1 ? 1 : steps > kMostSteps ? kMostSteps : steps;
}

// Whether the input is one number a dimension, so that it is a layer like the others; else a row of W and of A for
// every state above 0.
PYAR_INLINE bool dense_input(const MadeParameters& m) { return m.scalar_input || m.K == 2; }

// The distance between two samples' sums of the first layer: an odd number of cache lines.
PYAR_INLINE int64_t activation_stride(const MadeParameters& m) { return padded(m.layers[0].units) | 16; }

struct Space {
  float* input;               // [D, lanes], x as numbers, for dense input
  float* activation;          // [lanes, H_1 padded], the sums of the first layer so far, for one row a state
  float* units[kMostLayers];  // a layer: [H_l, lanes]
  float* outputs;             // [steps·P, lanes]
  float* weights;             // [P, lanes]
  float* uniforms;            // [D rounded up to 4, lanes]
  float* gathered;            // [padded columns], one sample's sums
  float* terms;               // [lanes], of log-probabilities
  float* products;            // [lanes], Π(1 + e^−|logit|) − 1 of some steps
  int32_t* states;            // [lanes]
  uint8_t* drawn;             // [D, lanes]
  int32_t* rows;              // [lanes, D], the rows of A that a sample's states above 0 name, so far
  int64_t* num_rows;          // [lanes]
  int64_t size;

  Space(const MadeParameters& m, float* base) {
    int64_t used = 0;
    const auto floats = [&](int64_t count) {
      const int64_t at = used;
      used += padded(count);
      return base == nullptr ? nullptr : base + at;
    };
    const bool dense = dense_input(m);
    const int64_t steps = block_steps(m);
    input = floats(dense ? m.D * kTileSamples : 0);
    activation = floats(dense ? 0 : kTileSamples * activation_stride(m));
    for (int64_t l = 0; l < m.num_layers; ++l) units[l] = floats(m.layers[l].units * kTileSamples);
    outputs = floats(steps * m.P * kTileSamples);
    weights = floats(m.P * kTileSamples);
    uniforms = floats((m.D + 3) / 4 * 4 * kTileSamples);
    gathered = floats(dense ? 0 : steps * m.P);
    terms = floats(kTileSamples);
    products = floats(kTileSamples);
    states = reinterpret_cast<int32_t*>(floats(kTileSamples));
    drawn = reinterpret_cast<uint8_t*>(floats((m.D * kTileSamples + 3) / 4));
    rows = reinterpret_cast<int32_t*>(floats(dense ? 0 : m.D * kTileSamples));
    num_rows = reinterpret_cast<int64_t*>(floats(2 * kTileSamples));
    size = used;
  }
};

// out[j] = start[j] + Σ_r table[rows[r]·stride + j] for j < columns, in the order of the rows.
//   out  [padded(columns)]
void gather_sums(const float* start, const float* table, int64_t stride, const int32_t* rows, int64_t count,
                 int64_t columns, float* out) {
  constexpr int64_t kVectors = 4;
  int64_t j = 0;
  for (; j + kVectors * kWidth <= columns; j += kVectors * kWidth) {
    Vector sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = load(start + j + v * kWidth);
    for (int64_t r = 0; r < count; ++r) {
      const float* row = table + rows[r] * stride + j;
      for (int v = 0; v < kVectors; ++v) sum[v] += load(row + v * kWidth);
    }
    for (int v = 0; v < kVectors; ++v) store(out + j + v * kWidth, sum[v]);
  }
  for (; j < columns; j += kWidth) {
    const int rest = static_cast<int>(columns - j < kWidth ? columns - j : kWidth);
    Vector sum = load_first(start + j, rest);
    for (int64_t r = 0; r < count; ++r) sum += load_first(table + rows[r] * stride + j, rest);
    store_first(out + j, sum, rest);
  }
}

// The uniforms of all dimensions of n samples: row d of `uniforms` [·, lanes] for dimension d.
void fill_uniforms(uint64_t seed, const int64_t* indices, int64_t n, int64_t lanes, int64_t num_dims, float* uniforms) {
  for (int64_t d = 0; d < num_dims; d += 4) {
    for (int64_t start = 0; start < n; start += kPhiloxLanes) {
      PhiloxBlock block[kPhiloxLanes];
      for (int64_t i = 0; i < kPhiloxLanes; ++i) {
        const int64_t lane = start + i < n ? start + i : n - 1;
        block[i] = philox_block(seed, static_cast<uint64_t>(indices[lane]), static_cast<uint32_t>(d));
      }
      const int64_t last = lanes - start < kPhiloxLanes ? lanes - start : kPhiloxLanes;
      for (int64_t w = 0; w < 4; ++w)
        for (int64_t i = 0; i < last; ++i) uniforms[(d + w) * lanes + start + i] = uniform_from_word(block[i].word[w]);
    }
    // Lanes without a sample follow along with some uniform, which is a number.
    for (int64_t start = (n + kPhiloxLanes - 1) / kPhiloxLanes * kPhiloxLanes; start < lanes; ++start)
      for (int64_t w = 0; w < 4; ++w) uniforms[(d + w) * lanes + start] = 0.5f;
  }
}

template <int N>
class Tile {
 public:
  Tile(const MadeSample& q, int64_t first, int64_t n, float* scratch)
      : q_(q),
        m_(q.model),
        s_(q.model, scratch),
        first_(first),
        n_(n),
        steps_(block_steps(q.model)),
        stride_(activation_stride(q.model)) {}

  // x_d ~ p(x_d | x_{<d}) for d = num_given … D−1 and Σ_d log p(x_d | x_{<d}) of every sample. Returns false if a
  // conditional was not a distribution.
  bool sample() {
    double total[kTileSamples] = {};
    fill_uniforms(q_.seed, q_.indices + first_, n_, lanes, m_.D, s_.uniforms);
    for (int64_t i = 0; i < lanes; ++i) {
      s_.num_rows[i] = 0;
      s_.terms[i] = s_.products[i] = 0.0f;
    }
    if (!dense_input(m_))
      for (int64_t i = 0; i < n_; ++i)
        memcpy(s_.activation + i * stride_, m_.layers[0].bias, m_.layers[0].units * sizeof(float));
    for (int64_t d0 = 0; d0 < m_.D; d0 += steps_) {
      const int64_t d1 = d0 + steps_ < m_.D ? d0 + steps_ : m_.D;
      start_block(d0, d1);
      for (int64_t d = d0; d < d1; ++d) {
        finish_units(d0, d);
        if (d < q_.num_given) {
          for (int64_t i = 0; i < lanes; ++i) s_.states[i] = q_.given[(first_ + lane(i)) * q_.num_given + d];
        } else {
          finish_outputs(d0, d);
          if (!draw(d0, d, total)) return false;
        }
        take(d);
      }
      if (m_.A != nullptr && !dense_input(m_)) name_rows(d0, d1);
    }
    write_states();
    for (int64_t i = 0; i < n_; ++i) q_.log_prob[first_ + i] = static_cast<float>(total[i]);
    return true;
  }

 private:
  static constexpr int64_t lanes = N * kWidth;

  int64_t lane(int64_t i) const { return i < n_ ? i : n_ - 1; }
  int64_t first_of(int64_t l, int64_t degree) const { return m_.layers[l].first[degree]; }

  // What the units and outputs of steps d0 … d1−1 receive from the steps before d0.
  void start_block(int64_t d0, int64_t d1) {
    for (int64_t l = 0; l < m_.num_layers; ++l) {
      const MadeLayer& layer = m_.layers[l];
      const int64_t u0 = first_of(l, d0), u1 = first_of(l, d1);
      if (u0 == u1) continue;
      if (l == 0 && !dense_input(m_)) continue;
      set_rows(s_.units[l] + u0 * lanes, layer.bias + u0, u1 - u0);
      if (l == 0) {
        add_products<N>(s_.units[0] + u0 * lanes, u1 - u0, layer.weight + u0, 1, layer.units, s_.input, d0);
      } else {
        const int64_t below = m_.layers[l - 1].units;
        add_products<N>(s_.units[l] + u0 * lanes, u1 - u0, layer.weight + u0 * below, below, 1, s_.units[l - 1],
                        first_of(l - 1, d0));
      }
    }
    if (d1 <= q_.num_given) return;
    const int64_t rows = (d1 - d0) * m_.P, all = m_.D * m_.P, last = m_.num_layers - 1, below = m_.layers[last].units;
    if (m_.A != nullptr && !dense_input(m_)) {
      gather(m_.b + d0 * m_.P, m_.A + d0 * m_.P, all, rows, s_.outputs);
    } else {
      set_rows(s_.outputs, m_.b + d0 * m_.P, rows);
      if (m_.A != nullptr) add_products<N>(s_.outputs, rows, m_.A + d0 * m_.P, 1, all, s_.input, d0);
    }
    add_products<N>(s_.outputs, rows, m_.V + d0 * m_.P * below, below, 1, s_.units[last], first_of(last, d0));
  }

  // The units of degree d: what they receive from within the block, then f.
  void finish_units(int64_t d0, int64_t d) {
    for (int64_t l = 0; l < m_.num_layers; ++l) {
      const MadeLayer& layer = m_.layers[l];
      const int64_t u0 = first_of(l, d), u1 = first_of(l, d + 1);
      if (u0 == u1) continue;
      float* units = s_.units[l] + u0 * lanes;
      if (l == 0 && !dense_input(m_)) {
        for (int64_t i = 0; i < lanes; ++i)
          for (int64_t j = u0; j < u1; ++j) units[(j - u0) * lanes + i] = s_.activation[lane(i) * stride_ + j];
      } else if (l == 0) {
        add_products<N>(units, u1 - u0, layer.weight + u0 + d0 * layer.units, 1, layer.units, s_.input + d0 * lanes,
                        d - d0);
      } else {
        const int64_t below = m_.layers[l - 1].units, k0 = first_of(l - 1, d0), k1 = first_of(l - 1, d + 1);
        add_products<N>(units, u1 - u0, layer.weight + u0 * below + k0, below, 1, s_.units[l - 1] + k0 * lanes,
                        k1 - k0);
      }
      for (int64_t i = 0; i < (u1 - u0) * lanes; i += kWidth)
        store(units + i, activate(m_.activation, load(units + i)));
    }
  }

  // The outputs of step d: what they receive from within the block.
  void finish_outputs(int64_t d0, int64_t d) {
    float* outputs = s_.outputs + (d - d0) * m_.P * lanes;
    if (m_.A != nullptr) add_inputs(outputs, m_.P, m_.A + d * m_.P, m_.D * m_.P, d0, d);
    const int64_t last = m_.num_layers - 1, below = m_.layers[last].units;
    const int64_t k0 = first_of(last, d0), k1 = first_of(last, d + 1);
    add_products<N>(outputs, m_.P, m_.V + d * m_.P * below + k0, below, 1, s_.units[last] + k0 * lanes, k1 - k0);
  }

  // Draws the states of step d from its outputs; adds the log-probabilities to total [lanes].
  bool draw(int64_t d0, int64_t d, double* total) {
    float* l = s_.outputs + (d - d0) * m_.P * lanes;
    const float* u = s_.uniforms + (q_.dims == nullptr ? d : q_.dims[d]) * lanes;
    const Vector temperature = broadcast(q_.temperature);
    if (q_.temperature != 1.0f)
      for (int64_t i = 0; i < m_.P * lanes; i += kWidth) store(l + i, load(l + i) / temperature);
    IntVector bad = {};
    for (int64_t i = 0; i < lanes; i += kWidth) {
      const IntVector states =
          m_.P == 1 ? draw_binary(load(l + i), load(u + i), i) : draw_one_of_many(l + i, load(u + i), i);
      bad |= states == kNoState;
      store_int(s_.states + i, states);
    }
    if (m_.P > 1 || (d + 1) % kLogarithmSteps == 0 || d + 1 == m_.D) add_terms(total);
    int32_t any = 0;
    for (int i = 0; i < kWidth; ++i) any |= bad[i];
    return any == 0;
  }

  IntVector draw_one_of_many(const float* l, Vector u, int64_t i) {
    Vector term;
    const IntVector states = draw_states(l, s_.weights + i, lanes, m_.P, u, &term);
    store(s_.terms + i, term);
    return states;
  }

  // As draw_states(), but Σ log σ(±logit) = Σ min(±logit, 0) − log Π(1 + e^−|logit|) has one logarithm for some steps.
  // Of the product only what it has above 1 is kept, so that small terms lose nothing.
  IntVector draw_binary(Vector logit, Vector u, int64_t i) {
    const Vector e = exponential(-absolute(logit)), sum = e + 1.0f;
    const IntVector zero = u * sum < select(logit > 0.0f, e, broadcast(1.0f));
    store(s_.terms + i, load(s_.terms + i) + minimum(select(zero, -logit, logit), Vector{}));
    const Vector product = load(s_.products + i);
    store(s_.products + i, fused_multiply_add(product, e, product + e));
    const IntVector state = zero + 1;
    const IntVector valid = logit <= 3.4028234e38f;  // neither NaN nor infinite
    return (state & valid) | ~valid;
  }

  // Moves the terms that have come together to total [lanes].
  void add_terms(double* total) {
    for (int64_t i = 0; i < lanes; i += kWidth) {
      if (m_.P == 1) {
        const Vector product = load(s_.products + i), sum = product + 1.0f, lost = product - (sum - 1.0f);
        store(s_.terms + i, load(s_.terms + i) - (logarithm(sum) + lost / sum));
      }
      for (int64_t j = i; j < i + kWidth; ++j) total[j] += static_cast<double>(s_.terms[j]);
      store(s_.terms + i, Vector{});
      store(s_.products + i, Vector{});
    }
  }

  // Makes the states of step d the input of what comes after.
  void take(int64_t d) {
    for (int64_t i = 0; i < lanes; i += kWidth) {
      const IntVector states = load_int(s_.states + i);
      const auto bytes = __builtin_convertvector(states, StateVector);
      memcpy(s_.drawn + d * lanes + i, &bytes, sizeof bytes);
      if (!dense_input(m_)) continue;
      const Vector numbers = __builtin_convertvector(states, Vector);
      store(s_.input + d * lanes + i, m_.K == 2 ? numbers : numbers / static_cast<float>(m_.K - 1));
    }
    if (!dense_input(m_)) add_rows(d);
  }

  // x [n, D] from the states of all steps, sixteen steps of sixteen samples at a time.
  void write_states() {
    constexpr int kBlock = 16;
    typedef uint8_t Bytes __attribute__((vector_size(kBlock)));
    const Bytes low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    const int64_t whole = m_.D / kBlock * kBlock;
    for (int64_t d = 0; d < whole; d += kBlock) {
      for (int64_t i = 0; i < n_; i += kBlock) {
        Bytes v[kBlock], w[kBlock];
        for (int r = 0; r < kBlock; ++r) memcpy(v + r, s_.drawn + (d + r) * lanes + i, kBlock);
        // Each round moves one bit of the step's number to the sample's place.
        for (int round = 0; round < 4; ++round) {
          for (int r = 0; r < kBlock / 2; ++r) {
            w[2 * r] = __builtin_shuffle(v[r], v[r + kBlock / 2], low);
            w[2 * r + 1] = __builtin_shuffle(v[r], v[r + kBlock / 2], low + 8);
          }
          for (int r = 0; r < kBlock; ++r) v[r] = w[r];
        }
        for (int64_t r = 0; r < kBlock && i + r < n_; ++r) memcpy(q_.x + (first_ + i + r) * m_.D + d, v + r, kBlock);
      }
    }
    for (int64_t i = 0; i < n_; ++i)
      for (int64_t d = whole; d < m_.D; ++d) q_.x[(first_ + i) * m_.D + d] = s_.drawn[d * lanes + i];
  }

  // activation += W[d, x_d] in the units that see dimension d; those before them are done with. Rows follow no pattern:
  // the next one is asked for early.
  void add_rows(int64_t d) {
    const int64_t H = m_.layers[0].units, begin = first_of(0, d + 1) / kWidth * kWidth;
    const auto row = [&](int64_t i) { return m_.layers[0].weight + (d * (m_.K - 1) + s_.states[i] - 1) * H; };
    for (int64_t i = 0; i < n_; ++i) {
      if (i + 1 < n_ && s_.states[i + 1] != 0)
        for (int64_t j = begin; j < H; j += 16) __builtin_prefetch(row(i + 1) + j);
      if (s_.states[i] == 0) continue;
      const float* w = row(i);
      float* a = s_.activation + i * stride_;
      for (int64_t j = begin; j < H; j += kWidth) {
        const int rest = static_cast<int>(H - j < kWidth ? H - j : kWidth);
        store(a + j, load(a + j) + (rest == kWidth ? load(w + j) : load_first(w + j, rest)));
      }
    }
  }

  // sums[r] = values[r] in all lanes, for r < count.
  void set_rows(float* sums, const float* values, int64_t count) {
    for (int64_t r = 0; r < count; ++r)
      for (int n = 0; n < N; ++n) store(sums + r * lanes + n * kWidth, broadcast(values[r]));
  }

  // sums[r, i] = start[r] + Σ table[row, r] over the rows of A that sample i has named, for r < count.
  void gather(const float* start, const float* table, int64_t stride, int64_t count, float* sums) {
    for (int64_t i = 0; i < lanes; ++i) {
      if (i < n_) gather_sums(start, table, stride, s_.rows + i * m_.D, s_.num_rows[i], count, s_.gathered);
      for (int64_t r = 0; r < count; ++r) sums[r * lanes + i] = s_.gathered[r];
    }
  }

  // sums[r] += the inputs of dimensions d0 … d1−1 times column r of their rows of A, for r < count.
  //   table  from its first column on; rows `stride` apart
  void add_inputs(float* sums, int64_t count, const float* table, int64_t stride, int64_t d0, int64_t d1) {
    if (dense_input(m_)) {
      add_products<N>(sums, count, table + d0 * stride, 1, stride, s_.input + d0 * lanes, d1 - d0);
      return;
    }
    for (int64_t d = d0; d < d1; ++d) {
      for (int64_t i = 0; i < n_; ++i) {
        const int64_t state = s_.drawn[d * lanes + i];
        if (state == 0) continue;
        const float* row = table + (d * (m_.K - 1) + state - 1) * stride;
        for (int64_t r = 0; r < count; ++r) sums[r * lanes + i] += row[r];
      }
    }
  }

  // Puts the rows that the states of steps d0 … d1−1 name behind those of the steps before.
  void name_rows(int64_t d0, int64_t d1) {
    for (int64_t i = 0; i < n_; ++i) {
      int32_t* rows = s_.rows + i * m_.D;
      for (int64_t d = d0; d < d1; ++d) {
        const int32_t state = s_.drawn[d * lanes + i];
        if (state != 0) rows[s_.num_rows[i]++] = static_cast<int32_t>(d * (m_.K - 1) + state - 1);
      }
    }
  }

  const MadeSample& q_;
  const MadeParameters& m_;
  const Space s_;
  const int64_t first_, n_, steps_, stride_;
};

}  // namespace

int64_t made_sample_scratch(const MadeParameters& model) { return Space(model, nullptr).size; }

bool made_sample(const MadeSample& q, int64_t begin, int64_t end, float* scratch) {
  // Whole vectors are dealt out, so that the last one alone may have lanes without a sample.
  const int64_t vectors = (end - begin + kWidth - 1) / kWidth, tiles = (vectors + kTileVectors - 1) / kTileVectors;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = begin + vectors * t / tiles * kWidth, next = begin + vectors * (t + 1) / tiles * kWidth;
    const int64_t n = (next < end ? next : end) - first;
    bool good = false;
    switch ((n + kWidth - 1) / kWidth) {
      case 1:
        good = Tile<1>(q, first, n, scratch).sample();
        break;
      case 2:
        good = Tile<2>(q, first, n, scratch).sample();
        break;
      case 3:
        good = Tile<3>(q, first, n, scratch).sample();
        break;
      default:
        good = Tile<4>(q, first, n, scratch).sample();
        break;
    }
    if (!good) return false;
  }
  return true;
}

}  // namespace pyar::cpu::PYAR_LEVEL
