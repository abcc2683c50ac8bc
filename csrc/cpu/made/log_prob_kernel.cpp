// MADE's log-probability and its gradients, for one instruction-set level.
//
//   h¹ = f(c + Σ_i W_i[x_i])   hˡ = f(biasˡ + weightˡ hˡ⁻¹)   logits_d = b_d + Σ_{i<d} A_i[x_i] + V_d h^L
//
// Germain, Gregor, Murray & Larochelle, "MADE: Masked Autoencoder for Distribution Estimation", ICML 2015. Degrees are
// sorted, so every masked matrix is a staircase, and its products take the steps that are there: half the work of dense
// layers, and what a mask hides is not read. The samples of a tile lie in the lanes of vectors. The input has a row of
// W and of A for every state but 0, and a sample's sum takes the rows that its states name, nothing for zeros.
//
// Gradients go backward through the layers of a tile, δ, and then, for the weights, over all samples:
//
//   ∂W_i[k] = Σ_{x_i = k} δ¹   ∂A_i[k] = Σ_{x_i = k} δ^out   ∂weightˡ = Σ δˡ hˡ⁻¹ᵀ   ∂V = Σ δ^out h^Lᵀ
//
// for which one factor is laid out in panels of kTileSamples columns, samples in rows. Every sum is one chain, in an
// order that depends neither on threads nor, but for sums over samples, on the batch.
#include "cpu/conditionals.h"
#include "cpu/made/kernel.h"
#include "cpu/made/products.h"

namespace pyar::cpu::PYAR_LEVEL {
namespace {

constexpr int64_t kPanel = kTileSamples;  // columns of a panel

PYAR_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

PYAR_INLINE int64_t panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

PYAR_INLINE Vector interleave(Vector a, Vector b, int half) {
  IntVector pick;
  for (int i = 0; i < kWidth; ++i) pick[i] = half * (kWidth / 2) + i / 2 + (i % 2) * kWidth;
  return __builtin_shuffle(a, b, pick);
}

// out[j·out_stride + i] = in[i·in_stride + j] for i < rows, j < columns. Rows are read, and those of `out` written, in
// whole vectors; what lies behind the last row of `in` is taken to be zero.
void transpose(const float* in, int64_t in_stride, int64_t rows, int64_t columns, float* out, int64_t out_stride) {
  for (int64_t i = 0; i < rows; i += kWidth) {
    for (int64_t j = 0; j < columns; j += kWidth) {
      Vector v[kWidth], w[kWidth];
#pragma GCC unroll 16
      for (int r = 0; r < kWidth; ++r) v[r] = i + r < rows ? load(in + (i + r) * in_stride + j) : Vector{};
      // Each round moves one bit of the row's number to the column's.
#pragma GCC unroll 4
      for (int size = 1; size < kWidth; size *= 2) {
#pragma GCC unroll 8
        for (int r = 0; r < kWidth / 2; ++r) {
          w[2 * r] = interleave(v[r], v[r + kWidth / 2], 0);
          w[2 * r + 1] = interleave(v[r], v[r + kWidth / 2], 1);
        }
#pragma GCC unroll 16
        for (int r = 0; r < kWidth; ++r) v[r] = w[r];
      }
      const int64_t left = lesser(kWidth, columns - j);
      for (int r = 0; r < left; ++r) store(out + (j + r) * out_stride + i, v[r]);
    }
  }
}

// One for the lanes `first` … `last`−1.
PYAR_INLINE IntVector lanes_between(int64_t first, int64_t last) {
  IntVector lane;
  for (int i = 0; i < kWidth; ++i) lane[i] = i;
  return (lane >= static_cast<int32_t>(first)) & (lane < static_cast<int32_t>(last));
}

// out[j] = values[j] for first ≤ j < last, 0 for the other j < count.
PYAR_INLINE void store_seen(float* out, const Vector* values, int64_t first, int64_t last, int64_t count) {
  if (first <= 0 && last >= kPanel && count == kPanel) {
    for (int v = 0; v < kTileVectors; ++v) store(out + v * kWidth, values[v]);
    return;
  }
  for (int v = 0; v < kTileVectors; ++v) {
    const int64_t at = v * kWidth;
    if (at >= count) return;
    const auto clamped = [at](int64_t j) { return j < at ? 0 : j - at > kWidth ? int64_t{kWidth} : j - at; };
    store_first(out + at, select(lanes_between(clamped(first), clamped(last)), values[v], Vector{}),
                static_cast<int>(lesser(kWidth, count - at)));
  }
}

// The states above 0 of a tile, sample by sample, in the order of the dimensions.
struct NamedRows {
  int32_t* dims;   // [kTileSamples, D]
  int32_t* rows;   // [kTileSamples, D], of W and A
  int32_t* count;  // [kTileSamples]
};

struct Space {
  uint8_t* states;  // [D, lanes]
  NamedRows named;
  int32_t* seen_by_all;   // [kTileSamples], of every sample's rows those that all columns of the panel see,
  int32_t* seen_by_some;  // and those that some see
  float* panel;           // [kTileSamples, kPanel]
  int64_t size;

  Space(const MadeParameters& m, float* base) {
    int64_t used = 0;
    const auto floats = [&](int64_t count) {
      const int64_t at = used;
      used += padded(count);
      return base == nullptr ? nullptr : base + at;
    };
    const auto integers = [&](int64_t count) { return reinterpret_cast<int32_t*>(floats(count)); };
    states = reinterpret_cast<uint8_t*>(floats((m.D * kTileSamples + 3) / 4));
    named.dims = integers(kTileSamples * m.D);
    named.rows = m.K == 2 ? named.dims : integers(kTileSamples * m.D);
    named.count = integers(kTileSamples);
    seen_by_all = integers(kTileSamples);
    seen_by_some = integers(kTileSamples);
    panel = floats(kTileSamples * kPanel);
    size = used;
  }
};

// out[j] = start[j] + Σ table[row, j] over the rows that column j sees, for j < count.
//   table  from the panel's first column on, rows `stride` apart
//   all    of the rows, those that every column sees; then, up to `some`, those that columns from start_of[dim] see,
//          which counts from the table's first column, `first` before the panel's
template <bool kWhole>
PYAR_INLINE void sum_of_rows(const float* start, const float* table, int64_t stride, const int32_t* rows, int64_t all,
                             int64_t some, const int32_t* dims, const int32_t* start_of, int64_t first, int64_t count,
                             float* out) {
  const auto part = [count](const float* p, int v) {
    return kWhole ? load(p + v * kWidth) : load_first(p + v * kWidth, lanes_of_part(count, v));
  };
  Vector sum[kTileVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kTileVectors; ++v) sum[v] = part(start, v);
  for (int64_t r = 0; r < all; ++r) {
    const float* row = table + rows[r] * stride;
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) sum[v] += part(row, v);
  }
  for (int64_t r = all; r < some; ++r) {
    const float* row = table + rows[r] * stride;
    const int64_t seen = start_of[dims[r]] - first;
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) {
      const int64_t hidden = seen - v * kWidth;
      if (hidden < kWidth) sum[v] += select(lanes_between(hidden, kWidth), part(row, v), Vector{});
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kTileVectors; ++v) store(out + v * kWidth, sum[v]);
}

template <int N>
class Forward {
 public:
  Forward(const MadeLogProb& q, int64_t first, int64_t n, float* block, float* scratch)
      : q_(q), m_(q.model), s_(m_, scratch), first_(first), n_(n), block_(block) {}

  void run(float* log_prob) {
    read_states();
    if (m_.scalar_input)
      for (int64_t i = 0; i < m_.D * lanes; ++i)
        block_[i] = static_cast<float>(s_.states[i]) / static_cast<float>(m_.K - 1);
    for (int64_t l = 0; l < m_.num_layers; ++l) {
      const MadeLayer& layer = m_.layers[l];
      if (l == 0) {
        add_input(layer.bias, layer.weight, layer.units, layer.seen, units(0));
      } else {
        set_rows(units(l), layer.bias, layer.units);
        const int64_t below = m_.layers[l - 1].units;
        add_products<N>(units(l), layer.units, layer.weight, below, 1, units(l - 1), below, nullptr, layer.seen.reach);
      }
      for (int64_t i = 0; i < layer.units * lanes; i += kWidth)
        store(units(l) + i, activate(m_.activation, load(units(l) + i)));
      if (q_.dropout != nullptr) drop(l);
    }
    const int64_t outputs = m_.D * m_.P, below = m_.layers[m_.num_layers - 1].units;
    if (m_.A == nullptr) {
      set_rows(units(m_.num_layers), m_.b, outputs);
    } else {
      add_input(m_.b, m_.A, outputs, m_.seen_by_A, units(m_.num_layers));
    }
    add_products<N>(units(m_.num_layers), outputs, m_.V, below, 1, units(m_.num_layers - 1), below, nullptr,
                    m_.seen_by_V.reach);
    conditionals(log_prob);
  }

 private:
  static constexpr int64_t lanes = N * kWidth;

  // [H_l, lanes] of layer l; behind the last one, the outputs.
  float* units(int64_t l) { return block_ + made_row_of_layer(m_, l) * lanes; }

  void read_states() {
    for (int64_t i = 0; i < lanes; ++i) {
      const uint8_t* x = q_.x + (first_ + (i < n_ ? i : n_ - 1)) * m_.D;
      for (int64_t d = 0; d < m_.D; ++d) s_.states[d * lanes + i] = x[d];
    }
    if (m_.scalar_input) return;
    for (int64_t i = 0; i < n_; ++i) {
      const uint8_t* x = q_.x + (first_ + i) * m_.D;
      int32_t *dims = s_.named.dims + i * m_.D, *rows = s_.named.rows + i * m_.D;
      int64_t count = 0;
      for (int64_t d = 0; d < m_.D; ++d) {
        dims[count] = static_cast<int32_t>(d);
        rows[count] = static_cast<int32_t>(d * (m_.K - 1) + x[d] - 1 + (x[d] == 0));
        count += x[d] != 0;
      }
      s_.named.count[i] = static_cast<int32_t>(count);
    }
  }

  // sums[r] = values[r] in all lanes, for r < count.
  void set_rows(float* sums, const float* values, int64_t count) {
    for (int64_t r = 0; r < count; ++r)
      for (int n = 0; n < N; ++n) store(sums + r * lanes + n * kWidth, broadcast(values[r]));
  }

  // sums[j] = start[j] + what output j receives from the dimensions it sees, for j < columns.
  //   table  [D, K−1, columns], or [D, columns] for scalar input
  void add_input(const float* start, const float* table, int64_t columns, const Staircase& seen, float* sums) {
    if (m_.scalar_input) {
      set_rows(sums, start, columns);
      add_products<N>(sums, columns, table, 1, columns, block_, m_.D, nullptr, seen.reach);
      return;
    }
    for (int64_t i = 0; i < n_; ++i) s_.seen_by_all[i] = s_.seen_by_some[i] = 0;
    for (int64_t j = 0; j < columns; j += kPanel) {
      const int64_t count = lesser(kPanel, columns - j);
      for (int64_t i = 0; i < n_; ++i) {
        const int32_t *dims = s_.named.dims + i * m_.D, *rows = s_.named.rows + i * m_.D;
        const int32_t named = s_.named.count[i];
        int32_t all = s_.seen_by_all[i], some = s_.seen_by_some[i];
        while (all < named && dims[all] < seen.reach[j]) ++all;
        while (some < named && dims[some] < seen.reach[j + count - 1]) ++some;
        s_.seen_by_all[i] = all;
        s_.seen_by_some[i] = some;
        (count == kPanel ? sum_of_rows<true> : sum_of_rows<false>)(start + j, table + j, columns, rows, all, some, dims,
                                                                   seen.start, j, count, s_.panel + i * kPanel);
      }
      transpose(s_.panel, kPanel, n_, count, sums + j * lanes, lanes);
    }
  }

  void drop(int64_t l) {
    const int64_t H = m_.layers[l].units;
    for (int64_t i = 0; i < n_; ++i)
      for (int64_t j = 0; j < H; ++j) units(l)[j * lanes + i] *= q_.dropout[l][(first_ + i) * H + j];
  }

  // log_prob[i] = Σ_d log p(x_d | x_{<d}); the outputs become its gradient with respect to them.
  void conditionals(float* log_prob) {
    double total[lanes] = {};
    const Vector temperature = broadcast(q_.temperature);
    for (int64_t d = 0; d < m_.D; ++d) {
      float* l = units(m_.num_layers) + d * m_.P * lanes;
      if (q_.temperature != 1.0f)
        for (int64_t i = 0; i < m_.P * lanes; i += kWidth) store(l + i, load(l + i) / temperature);
      float term[lanes];
      for (int64_t i = 0; i < lanes; i += kWidth) store(term + i, conditional(l + i, states_of(d, i)));
      for (int64_t i = 0; i < lanes; ++i) total[i] += static_cast<double>(term[i]);
      if (q_.temperature != 1.0f)
        for (int64_t i = 0; i < m_.P * lanes; i += kWidth) store(l + i, load(l + i) / temperature);
    }
    for (int64_t i = 0; i < n_; ++i) log_prob[first_ + i] = static_cast<float>(total[i]);
  }

  IntVector states_of(int64_t d, int64_t i) {
    typedef uint8_t Bytes __attribute__((vector_size(kWidth)));
    Bytes bytes;
    memcpy(&bytes, s_.states + d * lanes + i, sizeof bytes);
    return __builtin_convertvector(bytes, IntVector);
  }

  // log p(x) of kWidth conditionals with logits l [P, lanes], which become 1[x = k] − p(k); as draw_states().
  Vector conditional(float* l, IntVector x) {
    if (m_.P == 1) {
      const Vector logit = load(l), e = exponential(-absolute(logit));
      const IntVector one = x != 0;
      const Vector p = select(logit > 0.0f, broadcast(1.0f), e) / (e + 1.0f);
      store(l, select(one, broadcast(1.0f), Vector{}) - p);
      return binary_log_probability(logit, e, one);
    }
    Vector highest = load(l), chosen = highest, parts[4] = {};
    for (int64_t k = 1; k < m_.P; ++k) {
      const Vector logit = load(l + k * lanes);
      highest = maximum(highest, logit);
      chosen = select(x == static_cast<int32_t>(k), logit, chosen);
    }
    for (int64_t k = 0; k < m_.P; ++k) {
      const Vector weight = exponential(load(l + k * lanes) - highest);
      parts[k % 4] += weight;
      store(l + k * lanes, weight);
    }
    const Vector sum = (parts[0] + parts[1]) + (parts[2] + parts[3]);
    for (int64_t k = 0; k < m_.P; ++k) {
      const Vector p = load(l + k * lanes) / sum;
      store(l + k * lanes, select(x == static_cast<int32_t>(k), broadcast(1.0f), Vector{}) - p);
    }
    return chosen - highest - logarithm(sum);
  }

  const MadeLogProb& q_;
  const MadeParameters& m_;
  const Space s_;
  const int64_t first_, n_;
  float* const block_;
};

// Where factors of weights' gradients lie, transposed, in panels [n, kPanel]: the units of every layer, then δ of the
// first layer, then δ of the outputs.
struct Columns {
  const MadeParameters& m;
  int64_t n;

  int64_t count(int64_t factor) const {
    return factor < m.num_layers ? m.layers[factor].units : factor == m.num_layers ? m.layers[0].units : m.D * m.P;
  }
  int64_t offset(int64_t factor) const {
    int64_t total = 0;
    for (int64_t f = 0; f < factor; ++f) total += panels(count(f)) * kPanel * n;
    return total;
  }
};

template <int N>
class Backward {
 public:
  Backward(const MadeGradient& g, int64_t first, int64_t n)
      : g_(g), m_(g.forward.model), columns_{m_, g.forward.n}, first_(first), n_(n) {}

  void run() {
    const int64_t L = m_.num_layers;
    Vector grad[N];
    for (int v = 0; v < N; ++v) grad[v] = load_first(g_.grad + first_ + v * kWidth, lanes_of_part(n_, v));
    for (int64_t r = 0; r < m_.D * m_.P; ++r)
      for (int v = 0; v < N; ++v) {
        const int64_t at = r * lanes + v * kWidth;
        store(deltas(L) + at, load(values(L) + at) * grad[v]);
      }
    for (int64_t l = L - 1; l >= 0; --l) {
      const int64_t H = m_.layers[l].units;
      float* delta = deltas(l);
      memset(delta, 0, H * lanes * sizeof(float));
      if (l == L - 1) {
        add_products<N>(delta, H, m_.V, 1, H, deltas(L), m_.D * m_.P, m_.seen_by_V.start);
      } else {
        const MadeLayer& above = m_.layers[l + 1];
        add_products<N>(delta, H, above.weight, 1, H, deltas(l + 1), above.units, above.seen.start);
      }
      if (g_.forward.dropout == nullptr) {
        for (int64_t i = 0; i < H * lanes; i += kWidth)
          store(delta + i, through_activation(m_.activation, load(values(l) + i), load(delta + i)));
      } else {
        through_dropout(l);
      }
      lay_out(l, values(l));
    }
    lay_out(L, deltas(0));
    lay_out(L + 1, deltas(L));
  }

 private:
  static constexpr int64_t lanes = N * kWidth;

  int64_t at(int64_t l) const { return first_ * made_rows(m_) + made_row_of_layer(m_, l) * lanes; }
  const float* values(int64_t l) const { return g_.values + at(l); }
  float* deltas(int64_t l) const { return g_.deltas + at(l); }

  // The values are h·s, s what dropout multiplied the units by.
  void through_dropout(int64_t l) {
    const int64_t H = m_.layers[l].units;
    for (int64_t j = 0; j < H; ++j) {
      float scale[lanes] = {};
      for (int64_t i = 0; i < n_; ++i) scale[i] = g_.forward.dropout[l][(first_ + i) * H + j];
      for (int64_t i = 0; i < lanes; i += kWidth) {
        const Vector s = load(scale + i);
        const Vector h = load(values(l) + j * lanes + i) / select(s == 0.0f, broadcast(1.0f), s);
        float* delta = deltas(l) + j * lanes + i;
        store(delta, through_activation(m_.activation, h, load(delta) * s));
      }
    }
  }

  void lay_out(int64_t factor, const float* rows) {
    float* out = g_.columns + columns_.offset(factor);
    for (int64_t j = 0; j < columns_.count(factor); j += kPanel)
      transpose(rows + j * lanes, lanes, lesser(kPanel, columns_.count(factor) - j), n_,
                out + j * columns_.n + first_ * kPanel, kPanel);
  }

  const MadeGradient& g_;
  const MadeParameters& m_;
  const Columns columns_;
  const int64_t first_, n_;
};

class Gradients {
 public:
  explicit Gradients(const MadeGradient& g) : g_(g), m_(g.forward.model), columns_{m_, g.forward.n} {}

  void compute(int64_t piece) {
    const int64_t L = m_.num_layers, first_units = m_.layers[0].units, outputs = m_.D * m_.P;
    const auto take = [&](int64_t count) {
      const bool here = piece >= 0 && piece < count;
      if (!here) piece -= count;
      return here;
    };
    if (take(panels(first_units))) return of_input(g_.W, first_units, L, piece, m_.layers[0].seen.start);
    if (m_.A != nullptr && take(panels(outputs))) return of_input(g_.A, outputs, L + 1, piece, m_.seen_by_A.start);
    for (int64_t l = 1; l <= L; ++l) {
      const int64_t below = m_.layers[l - 1].units;
      if (!take(panels(below))) continue;
      const int64_t rows = l < L ? m_.layers[l].units : outputs;
      const int32_t* reach = l < L ? m_.layers[l].seen.reach : m_.seen_by_V.reach;
      return of_products(l < L ? g_.weights[l - 1] : g_.V, rows, below, made_row_of_layer(m_, l), l - 1, piece, nullptr,
                         reach);
    }
    for (int64_t l = 0; l <= L; ++l)
      if (take(1)) return of_bias(l == 0 ? g_.c : l < L ? g_.biases[l - 1] : g_.b, l);
  }

 private:
  const float* panel_of(int64_t factor, int64_t panel) const {
    return g_.columns + columns_.offset(factor) + panel * kPanel * columns_.n;
  }

  // Calls visit(first, n, lanes) for every tile.
  template <class Visit>
  PYAR_INLINE void for_tiles(const Visit& visit) const {
    for (int64_t first = 0; first < columns_.n; first += kTileSamples) {
      const int64_t n = lesser(kTileSamples, columns_.n - first);
      visit(first, n, (n + kWidth - 1) / kWidth * kWidth);
    }
  }

  // A panel of the gradient of W or A, out [D, K−1, columns], or [D, columns] for scalar input: Σ δ over the samples
  // that have a row's state, or Σ x δ.
  void of_input(float* out, int64_t columns, int64_t factor, int64_t panel, const int32_t* start) {
    if (m_.scalar_input) return of_products(out, m_.D, columns, -1, factor, panel, start, nullptr);
    const float* delta = panel_of(factor, panel);
    const int64_t j = panel * kPanel, count = lesser(kPanel, columns - j), states = m_.K - 1;
    for (int64_t i = 0; i < m_.D; ++i) {
      for (int64_t row = i * states; row < (i + 1) * states; ++row) {
        Vector sum[kTileVectors] = {};
        if (start[i] < j + count) {
          for (int64_t u = g_.begin[row]; u < g_.begin[row + 1]; ++u) {
            const float* d = delta + g_.users[u] * kPanel;
#pragma GCC unroll 4
            for (int v = 0; v < kTileVectors; ++v) sum[v] += load(d + v * kWidth);
          }
        }
        store_seen(out + row * columns + j, sum, start[i] - j, count, count);
      }
    }
  }

  // A panel of out [rows, columns] = Σ_samples a bᵀ in the columns that a row sees: start[row] and behind, or those
  // before reach[row].
  //   a  the blocks' rows from `at` on, of deltas; −1: the input
  //   b  the factor that is laid out in panels
  void of_products(float* out, int64_t rows, int64_t columns, int64_t at, int64_t factor, int64_t panel,
                   const int32_t* start, const int32_t* reach) {
    const float* b = panel_of(factor, panel);
    const float* blocks = at < 0 ? g_.values : g_.deltas;
    const int64_t j = panel * kPanel, count = lesser(kPanel, columns - j), block_rows = made_rows(m_);
    for_row_tiles(rows, [&](auto tile, int64_t row) __attribute__((always_inline)) {
      constexpr int M = decltype(tile)::rows;
      Vector sum[M][kTileVectors] = {};
      if (start != nullptr ? start[row] < j + count : reach[row + M - 1] > j) {
        for_tiles([&](int64_t first, int64_t n, int64_t lanes) __attribute__((always_inline)) {
          multiply_accumulate<M, kTileVectors>(sum, blocks + first * block_rows + ((at < 0 ? 0 : at) + row) * lanes,
                                               lanes, 1, b + first * kPanel, n);
        });
      }
      for (int m = 0; m < M; ++m)
        store_seen(out + (row + m) * columns + j, sum[m], start != nullptr ? start[row + m] - j : 0,
                   reach != nullptr ? reach[row + m] - j : count, count);
    });
  }

  // out[r] = Σ_samples δ of layer l, or of the outputs.
  void of_bias(float* out, int64_t l) {
    const int64_t at = made_row_of_layer(m_, l), block_rows = made_rows(m_);
    const int64_t count = l < m_.num_layers ? m_.layers[l].units : m_.D * m_.P;
    for (int64_t r = 0; r < count; ++r) {
      Vector part[kParts] = {};
      for_tiles([&](int64_t first, int64_t n, int64_t lanes) {
        const float* delta = g_.deltas + first * block_rows + (at + r) * lanes;
        for (int64_t i = 0; i < n; i += kLanes)
          for (int p = 0; p < kParts; ++p) part[p] += load_first(delta + i + p * kWidth, lanes_of_part(n - i, p));
      });
      out[r] = sum_of_lanes(part);
    }
  }

  const MadeGradient& g_;
  const MadeParameters& m_;
  const Columns columns_;
};

// visit(vectors<N>) for tiles of n samples.
template <class Visit>
PYAR_INLINE void for_vectors(int64_t n, const Visit& visit) {
  switch ((n + kWidth - 1) / kWidth) {
    case 1:
      visit(TileRows<1>{});
      break;
    case 2:
      visit(TileRows<2>{});
      break;
    case 3:
      visit(TileRows<3>{});
      break;
    default:
      visit(TileRows<4>{});
      break;
  }
}

}  // namespace

int64_t made_tile_samples() { return kTileSamples; }

int64_t made_log_prob_scratch(const MadeParameters& model) { return Space(model, nullptr).size; }

void made_log_prob(const MadeLogProb& q, int64_t tile, float* block, float* log_prob, float* scratch) {
  const int64_t first = tile * kTileSamples, n = lesser(kTileSamples, q.n - first);
  for_vectors(n, [&](auto vectors) { Forward<decltype(vectors)::rows>(q, first, n, block, scratch).run(log_prob); });
}

int64_t made_columns(const MadeParameters& model, int64_t n) { return Columns{model, n}.offset(model.num_layers + 2); }

void made_deltas(const MadeGradient& g, int64_t tile) {
  const int64_t first = tile * kTileSamples, n = lesser(kTileSamples, g.forward.n - first);
  for_vectors(n, [&](auto vectors) { Backward<decltype(vectors)::rows>(g, first, n).run(); });
}

int64_t made_gradient_pieces(const MadeParameters& m) {
  int64_t pieces = panels(m.layers[0].units) + (m.A == nullptr ? 0 : panels(m.D * m.P)) + m.num_layers + 1;
  for (int64_t l = 0; l < m.num_layers; ++l) pieces += panels(m.layers[l].units);
  return pieces;
}

void made_gradient(const MadeGradient& g, int64_t piece) { Gradients(g).compute(piece); }

}  // namespace pyar::cpu::PYAR_LEVEL
