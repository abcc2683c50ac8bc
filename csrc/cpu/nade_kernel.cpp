// NADE's loops, compiled once per instruction-set level.
//
//   a_d = c + Σ_{i<d} W[i, x_i]    h_d = σ(a_d)    f_d = layers(h_d)    logits_d = V_d f_d + b_d
//
// Uria, Côté, Gregor, Murray & Larochelle, "Neural Autoregressive Distribution Estimation", JMLR 17 (2016), equations
// (2) and (3). State 0 contributes nothing, so a, h and f change only after a state above 0: what depends on them is
// computed once for each run of dimensions. Every dot product has one accumulator vector, whichever path computes it,
// and every sum over samples one order, so that results depend on no tile, batch size or thread count.
#include "cpu/nade_kernel.h"

#include "common/draw.h"
#include "common/philox.h"
#include "cpu/simd.h"

namespace pyar::cpu::PYAR_LEVEL {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Three products.

template <int kRows>
PYAR_INLINE void dot_rows(const float* x, const float* rows, int64_t stride, int64_t n, float* out,
                          int64_t out_stride) {
  Vector sum[kRows] = {};
  int64_t j = 0;
  for (; j + kWidth <= n; j += kWidth) {
    const Vector v = load(x + j);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) sum[r] = fused_multiply_add(load(rows + r * stride + j), v, sum[r]);
  }
  if (j < n) {
    const int rest = static_cast<int>(n - j);
    const Vector v = load_first(x + j, rest);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) sum[r] = fused_multiply_add(load_first(rows + r * stride + j, rest), v, sum[r]);
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) out[r * out_stride] = horizontal_sum(sum[r]);
}

// out[r·out_stride] = Σ_j rows[r·stride + j] x[j] for r < count, j < n.
void dots(const float* x, const float* rows, int64_t stride, int64_t count, int64_t n, float* out, int64_t out_stride) {
  for (; count > 12; count -= 8, rows += 8 * stride, out += 8 * out_stride)
    dot_rows<8>(x, rows, stride, n, out, out_stride);
  switch (count) {
#define PYAR_CASE(c) \
  case c:            \
    return dot_rows<c>(x, rows, stride, n, out, out_stride)
    PYAR_CASE(1);
    PYAR_CASE(2);
    PYAR_CASE(3);
    PYAR_CASE(4);
    PYAR_CASE(5);
    PYAR_CASE(6);
    PYAR_CASE(7);
    PYAR_CASE(8);
    PYAR_CASE(9);
    PYAR_CASE(10);
    PYAR_CASE(11);
    PYAR_CASE(12);
#undef PYAR_CASE
    default:
      return;
  }
}

// Several vectors times several rows: every load serves several multiply-adds, so that these set the pace.
constexpr int kBlockVectors = kWidth == 16 ? 4 : 2;  // as many sums as the registers hold
constexpr int kBlockRows = 5;

template <int kRows>
PYAR_INLINE void dot_block(const float* const* x, const float* rows, int64_t stride, int64_t n, float* out,
                           int64_t out_stride) {
  constexpr int kSums = kRows * kBlockVectors;
  Vector sum[kSums] = {};
  const float* from[kBlockVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kBlockVectors; ++i) from[i] = x[i];
  int64_t j = 0;
  for (; j + kWidth <= n; j += kWidth) {
    Vector v[kBlockVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kBlockVectors; ++i) v[i] = load(from[i] + j);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vector weight = in_register(load(rows + r * stride + j));
#pragma GCC unroll 8
      for (int i = 0; i < kBlockVectors; ++i)
        sum[r * kBlockVectors + i] = fused_multiply_add(weight, v[i], sum[r * kBlockVectors + i]);
    }
  }
  if (j < n) {
    const int rest = static_cast<int>(n - j);
    Vector v[kBlockVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kBlockVectors; ++i) v[i] = load_first(from[i] + j, rest);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vector weight = load_first(rows + r * stride + j, rest);
#pragma GCC unroll 8
      for (int i = 0; i < kBlockVectors; ++i)
        sum[r * kBlockVectors + i] = fused_multiply_add(weight, v[i], sum[r * kBlockVectors + i]);
    }
  }
  float total[kSums];
#pragma GCC unroll 8
  for (int s = 0; s + 4 <= kSums; s += 4) horizontal_sums(sum + s, total + s);
#pragma GCC unroll 4
  for (int s = kSums / 4 * 4; s < kSums; ++s) total[s] = horizontal_sum(sum[s]);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
    memcpy(out + r * out_stride, total + r * kBlockVectors, kBlockVectors * sizeof(float));
}

// out[r·out_stride + i] = Σ_j rows[r·stride + j] x[i][j] for r < count, i < vectors, j < n; bit for bit as dots().
void dots_of_many(const float* const* x, int64_t vectors, const float* rows, int64_t stride, int64_t count, int64_t n,
                  float* out, int64_t out_stride) {
  // Rows that stay in the first-level cache while all the vectors pass.
  const int64_t most =
      stride * kBlockRows >= kGroupFloats ? kBlockRows : kGroupFloats / stride / kBlockRows * kBlockRows;
  for (int64_t r0 = 0; r0 < count; r0 += most) {
    const int64_t r1 = r0 + most < count ? r0 + most : count;
    int64_t i = 0;
    for (; i + kBlockVectors <= vectors; i += kBlockVectors) {
      int64_t r = r0;
      for (; r + kBlockRows <= r1; r += kBlockRows)
        dot_block<kBlockRows>(x + i, rows + r * stride, stride, n, out + r * out_stride + i, out_stride);
      const float* rest = rows + r * stride;
      float* target = out + r * out_stride + i;
      switch (r1 - r) {
        case 1:
          dot_block<1>(x + i, rest, stride, n, target, out_stride);
          break;
        case 2:
          dot_block<2>(x + i, rest, stride, n, target, out_stride);
          break;
        case 3:
          dot_block<3>(x + i, rest, stride, n, target, out_stride);
          break;
        case 4:
          dot_block<4>(x + i, rest, stride, n, target, out_stride);
          break;
        default:
          break;
      }
    }
    for (; i < vectors; ++i) dots(x[i], rows + r0 * stride, stride, r1 - r0, n, out + r0 * out_stride + i, out_stride);
  }
}

// Rows that `combine` adds up before their sum is added to the result. With K = 256 there are thousands of rows: one
// accumulator for all of them would lose digits that the reference keeps.
constexpr int64_t kSummedRows = 32;

template <int kVectors>
PYAR_INLINE void combine_columns(const float* g, int64_t g_stride, const float* rows, int64_t stride, int64_t count,
                                 int last, float* y) {
  for (int64_t r = 0; r < count;) {
    const int64_t end = r + kSummedRows < count ? r + kSummedRows : count;
    Vector sum[kVectors] = {};
    for (; r < end; ++r) {
      const Vector weight = broadcast(g[r * g_stride]);
      const float* row = rows + r * stride;
#pragma GCC unroll 8
      for (int v = 0; v < kVectors - 1; ++v) sum[v] = fused_multiply_add(load(row + v * kWidth), weight, sum[v]);
      const float* tail = row + (kVectors - 1) * kWidth;
      const Vector value = last == kWidth ? load(tail) : load_first(tail, last);
      sum[kVectors - 1] = fused_multiply_add(value, weight, sum[kVectors - 1]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(y + v * kWidth, load(y + v * kWidth) + sum[v]);
  }
}

// y[j] += Σ_r g[r·g_stride] rows[r·stride + j] for j < n; y is padded.
void combine(const float* g, int64_t g_stride, const float* rows, int64_t stride, int64_t count, int64_t n, float* y) {
  for (; n > 8 * kWidth; n -= 8 * kWidth, rows += 8 * kWidth, y += 8 * kWidth)
    combine_columns<8>(g, g_stride, rows, stride, count, kWidth, y);
  const int vectors = static_cast<int>((n + kWidth - 1) / kWidth);
  const int last = static_cast<int>(n - (vectors - 1) * kWidth);
  switch (vectors) {
#define PYAR_CASE(c) \
  case c:            \
    return combine_columns<c>(g, g_stride, rows, stride, count, last, y)
    PYAR_CASE(1);
    PYAR_CASE(2);
    PYAR_CASE(3);
    PYAR_CASE(4);
    PYAR_CASE(5);
    PYAR_CASE(6);
    PYAR_CASE(7);
    PYAR_CASE(8);
#undef PYAR_CASE
    default:
      return;
  }
}

constexpr int kCombined = 4;  // vectors of every result at a time

template <int kResults>
PYAR_INLINE void combine_block(const float* g, int64_t g_stride, const float* rows, int64_t stride, int64_t count,
                               int64_t columns, float* const* y) {
  for (int64_t j = 0; j < columns; j += kCombined * kWidth) {
    for (int64_t r = 0; r < count;) {
      const int64_t end = r + kSummedRows < count ? r + kSummedRows : count;
      Vector sum[kResults][kCombined] = {};
      for (; r < end; ++r) {
        Vector value[kCombined];
#pragma GCC unroll 8
        for (int v = 0; v < kCombined; ++v) value[v] = in_register(load(rows + r * stride + j + v * kWidth));
#pragma GCC unroll 8
        for (int i = 0; i < kResults; ++i) {
          const Vector weight = in_register(broadcast(g[r * g_stride + i]));
#pragma GCC unroll 8
          for (int v = 0; v < kCombined; ++v) sum[i][v] = fused_multiply_add(value[v], weight, sum[i][v]);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kResults; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < kCombined; ++v) {
          float* target = y[i] + j + v * kWidth;
          store(target, load(target) + sum[i][v]);
        }
      }
    }
  }
}

// y[i][j] += Σ_r g[r·g_stride + i] rows[r·stride + j] for i < results, j < n; bit for bit as combine().
void combine_many(const float* g, int64_t g_stride, const float* rows, int64_t stride, int64_t count, int64_t n,
                  float* const* y, int64_t results) {
  constexpr int kResults = kBlockVectors;
  const int64_t columns = n / (kCombined * kWidth) * (kCombined * kWidth);
  int64_t i = 0;
  for (; i + kResults <= results; i += kResults)
    combine_block<kResults>(g + i, g_stride, rows, stride, count, columns, y + i);
  for (; i < results; ++i) combine_block<1>(g + i, g_stride, rows, stride, count, columns, y + i);
  if (columns < n)
    for (i = 0; i < results; ++i) combine(g + i, g_stride, rows + columns, stride, count, n - columns, y[i] + columns);
}

template <int kRows, int kVectors>
PYAR_INLINE void accumulate_tile(const float* const* x, int64_t j, const float* const* g, int64_t r, int64_t g_stride,
                                 int64_t count, int64_t n, float* out, int64_t out_stride, bool overwrite) {
  constexpr int64_t kAhead = 8;  // the x lie anywhere in memory
  Vector sum[kRows][kVectors] = {};
  for (int64_t i = 0; i < count; ++i) {
    if (kRows > 1 && i + kAhead < count)
      for (int v = 0; v < kVectors * kWidth; v += kPadding) __builtin_prefetch(x[i + kAhead] + j + v, 0, 3);
    Vector value[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) value[v] = load(x[i] + j + v * kWidth);
    const float* weights = g[i] + r * g_stride;
#pragma GCC unroll 8
    for (int q = 0; q < kRows; ++q) {
      const Vector weight = in_register(broadcast(weights[q * g_stride]));
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[q][v] = fused_multiply_add(value[v], weight, sum[q][v]);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < kRows; ++q) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = j + v * kWidth;
      float* target = out + (r + q) * out_stride + at;
      const int valid = static_cast<int>(n - at < kWidth ? n - at : kWidth);
      if (valid == kWidth) {
        store(target, overwrite ? sum[q][v] : load(target) + sum[q][v]);
      } else if (valid > 0) {
        store_first(target, overwrite ? sum[q][v] : load_first(target, valid) + sum[q][v], valid);
      }
    }
  }
}

template <int kRows, int kVectors>
PYAR_INLINE void accumulate_rows(const float* const* x, const float* const* g, int64_t r, int64_t g_stride,
                                 int64_t count, int64_t n, float* out, int64_t out_stride, bool overwrite) {
  int64_t j = 0;
  // The padding of x may be read: the last tile can reach past n, but never past the padded row.
  for (; j + kVectors * kWidth <= padded(n); j += kVectors * kWidth)
    accumulate_tile<kRows, kVectors>(x, j, g, r, g_stride, count, n, out, out_stride, overwrite);
  for (; j < n; j += kWidth) accumulate_tile<kRows, 1>(x, j, g, r, g_stride, count, n, out, out_stride, overwrite);
}

// out[r·out_stride + j] (+)= Σ_i g[i][r·g_stride] x[i][j] for r < rows, j < n, with i in order; the x are padded.
void accumulate(const float* const* x, const float* const* g, int64_t g_stride, int64_t count, int64_t rows, int64_t n,
                float* out, int64_t out_stride, bool overwrite) {
  if (rows == 1) return accumulate_rows<1, 8>(x, g, 0, g_stride, count, n, out, out_stride, overwrite);
  // The rows in turn for every few columns, so that those of x are still in the cache.
  constexpr int kVectors = kWidth == 16 ? 4 : 2;
  const int64_t step = kVectors * kWidth;
  int64_t r = 0;
  for (int64_t j = 0; rows >= 5 && j < n; j += step) {
    if (j + step <= padded(n)) {
      for (r = 0; r + 5 <= rows; r += 5)
        accumulate_tile<5, kVectors>(x, j, g, r, g_stride, count, n, out, out_stride, overwrite);
      continue;
    }
    for (r = 0; r + 5 <= rows; r += 5)
      for (int64_t at = j; at < n; at += kWidth)
        accumulate_tile<5, 1>(x, at, g, r, g_stride, count, n, out, out_stride, overwrite);
  }
  for (; r + 2 <= rows; r += 2) accumulate_rows<2, 4>(x, g, r, g_stride, count, n, out, out_stride, overwrite);
  if (r < rows) accumulate_rows<1, 8>(x, g, r, g_stride, count, n, out, out_stride, overwrite);
}

// ---------------------------------------------------------------------------------------------------------------------
// The hidden units.

// a += scale·w (if w is not null), then h = σ(a) (if h is not null); a and h are padded, and their padding is finite.
PYAR_INLINE void update_hidden(float* a, const float* w, float scale, float* h, int64_t H) {
  const Vector factor = broadcast(scale);
  for (int64_t j = 0; j < padded(H); j += kWidth) {
    Vector value = load(a + j);
    if (w != nullptr && j < H) {
      const Vector weight = j + kWidth <= H ? load(w + j) : load_first(w + j, static_cast<int>(H - j));
      value = fused_multiply_add(factor, weight, value);
      store(a + j, value);
    }
    if (h != nullptr) store(h + j, sigmoid(value));
  }
}

// What state x > 0 of dimension d adds to the activation: a row of W and its factor.
PYAR_INLINE const float* input_row(const NadeParameters& m, int64_t d, int x, float* scale) {
  if (m.scalar_input) {
    *scale = static_cast<float>(x) / static_cast<float>(m.K - 1);
    return m.W + d * m.H;
  }
  *scale = 1.0f;
  return m.W + (d * (m.K - 1) + x - 1) * m.H;
}

PYAR_INLINE void prefetch(const float* p, int64_t count) {
  for (int64_t j = 0; j < count; j += kPadding) __builtin_prefetch(p + j, 0, 2);
}

// Asks for the row of W that state x of dimension d will need. Which row that is follows no pattern, so that otherwise
// every one is waited for; a single row for all states of a dimension needs no help.
PYAR_INLINE void prefetch_input(const NadeParameters& m, int64_t d, int x) {
  if (x != 0 && m.K > 2 && !m.scalar_input) prefetch(m.W + (d * (m.K - 1) + x - 1) * m.H, m.H);
}

void add_input(const NadeParameters& m, int64_t d, int x, float* a, float* h) {
  float scale;
  const float* w = input_row(m, d, x, &scale);
  update_hidden(a, w, scale, h, m.H);
}

void start_activation(const NadeParameters& m, float* a) {
  memcpy(a, m.c, m.H * sizeof(float));
  for (int64_t j = m.H; j < padded(m.H); ++j) a[j] = 0.0f;
}

constexpr int64_t kReplayAhead = 8;  // dimensions between asking for a row of W and adding it

// Walks dimensions d0 … d1 of one sample from its activation a: the hidden units of run r go to hidden +
// r·row_stride(H), the run of dimension d to run[d − d0]. Returns the number of runs. a ends as the activation at d1.
// `same`: the row of hidden units of that very a, to be copied instead of computed, or null.
int64_t replay(const NadeParameters& m, const uint8_t* x, int64_t d0, int64_t d1, float* a, const float* same,
               float* hidden, int32_t* run) {
  const int64_t stride = row_stride(m.H);
  int64_t r = 0;
  if (same == nullptr) {
    update_hidden(a, nullptr, 0.0f, hidden, m.H);
  } else if (same != hidden) {
    memcpy(hidden, same, padded(m.H) * sizeof(float));
  }
  for (int64_t d = d0; d < d1; ++d) {
    run[d - d0] = static_cast<int32_t>(r);
    if (d + kReplayAhead < d1) prefetch_input(m, d + kReplayAhead, x[d + kReplayAhead]);
    if (x[d] == 0) continue;
    if (d + 1 < d1) ++r;
    add_input(m, d, x[d], a, d + 1 < d1 ? hidden + r * stride : nullptr);
  }
  return r + 1;
}

// rows ≥ 1 floats of stride F, copied to a padded stride so that no vector straddles cache lines or rows; zeros behind.
void pack_rows(const float* rows, int64_t count, int64_t F, float* packed) {
  const int64_t stride = row_stride(F);
  for (int64_t r = 0; r < count; ++r) {
    memcpy(packed + r * stride, rows + r * F, F * sizeof(float));
    for (int64_t j = F; j < stride; ++j) packed[r * stride + j] = 0.0f;
  }
}

constexpr int64_t kPackingUses = 8;

// A group of weight rows [count, columns], packed where `uses` of them pay for the copy.
struct Rows {
  const float* data;
  int64_t stride, columns;
};

PYAR_INLINE Rows group_rows(const float* rows, int64_t count, int64_t columns, int64_t uses, float* packed) {
  if (uses < kPackingUses || columns % kPadding == 0) return {rows, columns, columns};
  pack_rows(rows, count, columns, packed);
  return {packed, row_stride(columns), padded(columns)};
}

PYAR_INLINE int64_t group_size(int64_t floats_each) {
  return floats_each >= kGroupFloats ? 1 : kGroupFloats / floats_each;
}

// Floats of the packed copy of any group: of output rows, or of a layer's rows.
int64_t packed_floats(const NadeParameters& m) {
  int64_t widest = row_stride(m.F) * m.P * group_size(row_stride(m.F) * m.P);
  for (int64_t l = 0; l < m.num_layers; ++l) {
    const int64_t row = row_stride(m.layers[l].inputs);
    const int64_t floats = row * group_size(row);
    widest = floats > widest ? floats : widest;
  }
  return widest;
}

// One added layer on many rows: out[i] = max(0, weight in[i] + bias); out rows are padded with zeros.
void layer_forward(const DenseLayer& layer, const float* const* in, float* const* out, int64_t count, float* packed) {
  const int64_t group = group_size(row_stride(layer.inputs));
  for (int64_t m0 = 0; m0 < layer.outputs; m0 += group) {
    const int64_t rows = m0 + group < layer.outputs ? group : layer.outputs - m0;
    const Rows weight = group_rows(layer.weight + m0 * layer.inputs, rows, layer.inputs, count, packed);
    for (int64_t i = 0; i < count; ++i) dots(in[i], weight.data, weight.stride, rows, weight.columns, out[i] + m0, 1);
  }
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < layer.outputs; j += kWidth) {
      const int rest = static_cast<int>(layer.outputs - j < kWidth ? layer.outputs - j : kWidth);
      const Vector value = load_first(out[i] + j, rest) + load_first(layer.bias + j, rest);
      // Not maximum(): NaN must stay NaN.
      store_first(out[i] + j, select(value <= 0.0f, Vector{}, value), rest);
    }
    for (int64_t j = layer.outputs; j < padded(layer.outputs); ++j) out[i][j] = 0.0f;
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Conditionals, kWidth samples at a time: logit k of the lanes is at l[k·stride].

PYAR_INLINE Vector binary_log_probability(Vector logit, IntVector one) {
  const Vector z = select(one, logit, -logit);
  return minimum(z, Vector{}) - logarithm_of_one_plus(exponential(-absolute(z)));
}

// log p(x) of the lanes. With kGradient, the logits are replaced by scale·∂log p(x)/∂logit.
template <bool kGradient>
PYAR_INLINE Vector log_probability(float* l, int64_t stride, int64_t P, IntVector x, Vector scale) {
  if (P == 1) {
    const IntVector one = x > 0;
    const Vector logit = load(l);
    if constexpr (kGradient) {
      const Vector other = sigmoid(select(one, -logit, logit));  // 1 − p(x), without cancellation
      store(l, scale * select(one, other, -other));
    }
    return binary_log_probability(logit, one);
  }
  Vector highest = load(l), chosen = highest;
  for (int64_t k = 1; k < P; ++k) {
    const Vector logit = load(l + k * stride);
    highest = maximum(highest, logit);
    chosen = select(x == static_cast<int32_t>(k), logit, chosen);
  }
  Vector parts[4] = {};  // 256 states in one sum would lose digits
  for (int64_t k = 0; k < P; ++k) {
    const Vector weight = exponential(load(l + k * stride) - highest);
    parts[k % 4] += weight;
    if constexpr (kGradient) store(l + k * stride, weight);
  }
  const Vector sum = (parts[0] + parts[1]) + (parts[2] + parts[3]);
  if constexpr (kGradient) {
    const Vector factor = -scale / sum;
    for (int64_t k = 0; k < P; ++k) {
      const Vector hit = select(x == static_cast<int32_t>(k), scale, Vector{});
      store(l + k * stride, fused_multiply_add(factor, load(l + k * stride), hit));
    }
  }
  return chosen - highest - logarithm(sum);
}

PYAR_INLINE void add_bias(float* l, int64_t stride, const float* b, int64_t P) {
  for (int64_t k = 0; k < P; ++k) store(l + k * stride, load(l + k * stride) + broadcast(b[k]));
}

PYAR_INLINE IntVector load_int(const int32_t* p) {
  IntVector v;
  memcpy(&v, p, sizeof v);
  return v;
}

PYAR_INLINE void store_int(int32_t* p, IntVector v) { memcpy(p, &v, sizeof v); }

// ---------------------------------------------------------------------------------------------------------------------
// A work space is cut from one allocation; with base = null only its size is counted.

struct Cutter {
  float* base;
  int64_t used;
  float* floats(int64_t count) {
    const int64_t at = used;
    used += padded(count);
    return base == nullptr ? nullptr : base + at;
  }
  template <typename T>
  T* array(int64_t count) {
    return reinterpret_cast<T*>(floats((count * sizeof(T) + sizeof(float) - 1) / sizeof(float)));
  }
};

constexpr int64_t kForwardBlock = 8;  // dimensions walked between two looks at the output weights, at most

// Whether a dimension has output rows enough for a product with all samples; else one sample's run of dimensions is
// the product.
PYAR_INLINE bool many_rows(const NadeParameters& m) { return m.P >= kBlockRows; }

// The product of a dimension's output rows with the features of n samples, in which memory is asked for what comes
// next: the following dimension's rows, and the rows of W of the states x (sample i's at x[i·D]), if they are known.
void outputs_ahead(const NadeParameters& m, int64_t d, const Rows& V, const float* const* in, int64_t n,
                   const uint8_t* x, float* logits, int64_t out_stride) {
  constexpr int64_t kTogether = 8;
  const float* ahead = m.V + (d + 1) * m.P * m.F;
  const int64_t size = d + 1 < m.D ? m.P * m.F : 0;
  const int64_t parts = (n + kTogether - 1) / kTogether;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = part * kTogether, end = begin + kTogether < n ? begin + kTogether : n;
    const int64_t from = padded(size * part / parts), to = padded(size * (part + 1) / parts);
    prefetch(ahead + from, to - from);
    if (x != nullptr)
      for (int64_t i = begin; i < end; ++i) prefetch_input(m, d, x[i * m.D]);
    dots_of_many(in + begin, end - begin, V.data, V.stride, m.P, V.columns, logits + begin, out_stride);
  }
}

struct ForwardSpace {
  float *activation, *hidden, *features[2], *logits, *packed, *terms;
  int32_t *run, *runs, *states;
  const float** in;
  float** out;
  int64_t size;

  ForwardSpace(const NadeParameters& m, float* base) {
    Cutter cut{base, 0};
    const int64_t H = row_stride(m.H);
    int64_t widest = 0;
    for (int64_t l = 0; l < m.num_layers; ++l) widest = m.layers[l].outputs > widest ? m.layers[l].outputs : widest;
    activation = cut.floats(kTile * H);
    hidden = cut.floats(kTile * kForwardBlock * H);
    for (float*& buffer : features) buffer = cut.floats(kTile * kForwardBlock * row_stride(widest));
    logits = cut.floats(kForwardBlock * m.P * kTile);
    packed = cut.floats(packed_floats(m));
    terms = cut.floats(kTile);
    run = cut.array<int32_t>(kTile * kForwardBlock);
    runs = cut.array<int32_t>(kTile);
    states = cut.array<int32_t>(kTile);
    in = cut.array<const float*>(kTile * kForwardBlock);
    out = cut.array<float*>(kTile * kForwardBlock);
    size = cut.used;
  }
};

// The rows of V times the features of the runs of one sample, for dimensions [d0, d1) of a block: row r of `features`
// (stride F) belongs to run r. Output k of dimension d goes to logits[((d − d0)·P + k)·out_stride].
PYAR_INLINE void run_logits(const Rows& V, int64_t P, const int32_t* run, int64_t d0, int64_t d1, const float* features,
                            int64_t stride, float* logits, int64_t out_stride) {
  for (int64_t d = d0; d < d1;) {
    int64_t end = d + 1;
    while (end < d1 && run[end] == run[d]) ++end;
    dots(features + run[d] * stride, V.data + (d - d0) * P * V.stride, V.stride, (end - d) * P, V.columns,
         logits + (d - d0) * P * out_stride, out_stride);
    d = end;
  }
}

// What follows from the logits (without the bias) of dimension d.
PYAR_INLINE void forward_dimension(const NadeForward& f, int64_t first, int64_t n, int64_t d, float* logits,
                                   const ForwardSpace& s, double* total) {
  const NadeParameters& m = f.model;
  const int64_t P = m.P;
  for (int64_t i = 0; i < n; i += kWidth) add_bias(logits + i, kTile, m.b + d * P, P);
  if (f.logits != nullptr)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < P; ++k) f.logits[((first + i) * m.D + d) * P + k] = logits[k * kTile + i];
  if (f.log_prob == nullptr) return;
  for (int64_t i = 0; i < n; ++i) s.states[i] = f.x[(first + i) * m.D + d];
  for (int64_t i = 0; i < n; i += kWidth)
    store(s.terms + i, log_probability<false>(logits + i, kTile, P, load_int(s.states + i), Vector{}));
  for (int64_t i = 0; i < n; ++i) total[i] += static_cast<double>(s.terms[i]);
}

void forward_tile(const NadeForward& f, int64_t first, int64_t n, float* scratch) {
  const NadeParameters& m = f.model;
  const ForwardSpace s(m, scratch);
  const int64_t H = row_stride(m.H), P = m.P;
  const uint8_t* x = f.x + first * m.D;
  double total[kTile] = {};
  for (int64_t i = 0; i < n; ++i) start_activation(m, s.activation + i * H);
  memset(s.logits, 0, kForwardBlock * P * kTile * sizeof(float));  // the lanes without a sample

  if (many_rows(m) && m.num_layers == 0) {
    // One dimension after the other, so that one row of hidden units a sample is enough and stays in the cache.
    for (int64_t i = 0; i < n; ++i) {
      update_hidden(s.activation + i * H, nullptr, 0.0f, s.hidden + i * H, m.H);
      s.in[i] = s.hidden + i * H;
    }
    for (int64_t d = 0; d < m.D; ++d) {
      const Rows V = group_rows(m.V + d * P * m.F, P, m.F, n, s.packed);
      outputs_ahead(m, d, V, s.in, n, x + d, s.logits, kTile);
      forward_dimension(f, first, n, d, s.logits, s, total);
      if (d + 1 == m.D) break;
      for (int64_t i = 0; i < n; ++i)
        if (x[i * m.D + d] != 0) add_input(m, d, x[i * m.D + d], s.activation + i * H, s.hidden + i * H);
    }
  } else {
    for (int64_t d0 = 0; d0 < m.D; d0 += kForwardBlock) {
      const int64_t d1 = d0 + kForwardBlock < m.D ? d0 + kForwardBlock : m.D;
      for (int64_t i = 0; i < n; ++i) {
        float* hidden = s.hidden + i * kForwardBlock * H;
        const bool unchanged = d0 > 0 && x[i * m.D + d0 - 1] == 0;
        s.runs[i] = static_cast<int32_t>(replay(m, x + i * m.D, d0, d1, s.activation + i * H,
                                                unchanged ? hidden + (s.runs[i] - 1) * H : nullptr, hidden,
                                                s.run + i * kForwardBlock));
      }
      const float* features = s.hidden;
      int64_t stride = H;
      for (int64_t l = 0; l < m.num_layers; ++l) {
        int64_t rows = 0;
        const int64_t next = row_stride(m.layers[l].outputs);
        for (int64_t i = 0; i < n; ++i)
          for (int64_t r = 0; r < s.runs[i]; ++r, ++rows) {
            s.in[rows] = features + (i * kForwardBlock + r) * stride;
            s.out[rows] = s.features[l % 2] + (i * kForwardBlock + r) * next;
          }
        layer_forward(m.layers[l], s.in, s.out, rows, s.packed);
        features = s.features[l % 2];
        stride = next;
      }
      const int64_t group = group_size(row_stride(m.F) * P);
      for (int64_t g0 = d0; g0 < d1; g0 += group) {
        const int64_t g1 = g0 + group < d1 ? g0 + group : d1;
        const Rows V = group_rows(m.V + g0 * P * m.F, (g1 - g0) * P, m.F, n, s.packed);
        if (many_rows(m)) {
          for (int64_t d = g0; d < g1; ++d) {
            for (int64_t i = 0; i < n; ++i)
              s.in[i] = features + (i * kForwardBlock + s.run[i * kForwardBlock + d - d0]) * stride;
            dots_of_many(s.in, n, V.data + (d - g0) * P * V.stride, V.stride, P, V.columns,
                         s.logits + (d - g0) * P * kTile, kTile);
          }
        } else {
          for (int64_t i = 0; i < n; ++i)
            run_logits(V, P, s.run + i * kForwardBlock - d0, g0, g1, features + i * kForwardBlock * stride, stride,
                       s.logits + i, kTile);
        }
        for (int64_t d = g0; d < g1; ++d) forward_dimension(f, first, n, d, s.logits + (d - g0) * P * kTile, s, total);
      }
    }
  }
  if (f.log_prob != nullptr)
    for (int64_t i = 0; i < n; ++i) f.log_prob[first + i] = static_cast<float>(total[i]);
}

// The samples [begin, end) in tiles of nearly equal size.
template <typename Function>
PYAR_INLINE void for_tiles(int64_t begin, int64_t end, const Function& function) {
  const int64_t tiles = (end - begin + kTile - 1) / kTile;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = begin + (end - begin) * t / tiles, last = begin + (end - begin) * (t + 1) / tiles;
    function(first, last - first);
  }
}

}  // namespace

int64_t nade_forward_scratch(const NadeParameters& model) { return ForwardSpace(model, nullptr).size; }

void nade_forward(const NadeForward& f, int64_t begin, int64_t end, float* scratch) {
  for_tiles(begin, end, [&](int64_t first, int64_t n) { forward_tile(f, first, n, scratch); });
}

// ---------------------------------------------------------------------------------------------------------------------
// Gradients.

// The activation at the start of every block, for samples [begin, end).
void nade_checkpoints(const NadeBackward& q, int64_t begin, int64_t end) {
  const NadeParameters& m = q.model;
  const int64_t H = row_stride(m.H);
  for (int64_t i = begin; i < end; ++i) {
    float* a = q.checkpoints + i * H;
    start_activation(m, a);
    for (int64_t d0 = 0; d0 + q.block < m.D; d0 += q.block) {
      float* next = a + q.n * H;
      memcpy(next, a, H * sizeof(float));
      for (int64_t d = d0; d < d0 + q.block; ++d) {
        const int64_t ahead = d + q.block;
        if (ahead < m.D) prefetch_input(m, ahead, q.x[i * m.D + ahead]);
        if (q.x[i * m.D + d] != 0) add_input(m, d, q.x[i * m.D + d], next, nullptr);
      }
      a = next;
    }
    memset(q.later + i * H, 0, H * sizeof(float));
  }
}

namespace {

struct BackwardSpace {
  float *activation, *packed;
  int32_t* runs;
  const float** in;
  float** out;
  int64_t size;

  BackwardSpace(const NadeParameters& m, int64_t block, float* base) {
    Cutter cut{base, 0};
    activation = cut.floats(row_stride(m.H));
    packed = cut.floats(packed_floats(m));
    runs = cut.array<int32_t>(kSubBatch);
    in = cut.array<const float*>(m.num_layers > 0 ? kSubBatch * block : 0);
    out = cut.array<float*>(m.num_layers > 0 ? kSubBatch * block : 0);
    size = cut.used;
  }
};

// Runs the layers backwards on the runs of a tile: from the gradient with respect to the last layer's outputs to that
// with respect to h, which is stored where `suffix` will be.
void layers_backward(const NadeBackward& q, int64_t first, int64_t n, const int32_t* runs, float* packed) {
  const NadeParameters& m = q.model;
  for (int64_t l = m.num_layers - 1; l >= 0; --l) {
    const DenseLayer& layer = m.layers[l];
    const int64_t from = row_stride(layer.outputs), to = row_stride(layer.inputs);
    float* below = l == 0 ? q.suffix : q.feature_gradients[l - 1];
    int64_t rows = 0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t r = 0; r < runs[i]; ++r, ++rows) {
        const int64_t row = (first + i) * q.block + r;
        const float* value = q.features[l] + row * from;
        float* gradient = q.feature_gradients[l] + row * from;
        for (int64_t j = 0; j < from; j += kWidth)
          store(gradient + j, select(load(value + j) > 0.0f, load(gradient + j), Vector{}));
        memset(below + row * to, 0, to * sizeof(float));
      }
    const int64_t group = group_size(to);
    for (int64_t m0 = 0; m0 < layer.outputs; m0 += group) {
      const int64_t count = m0 + group < layer.outputs ? group : layer.outputs - m0;
      const Rows weight = group_rows(layer.weight + m0 * layer.inputs, count, layer.inputs, rows, packed);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t r = 0; r < runs[i]; ++r) {
          const int64_t row = (first + i) * q.block + r;
          combine(q.feature_gradients[l] + row * from + m0, 1, weight.data, weight.stride, count, weight.columns,
                  below + row * to);
        }
    }
  }
}

// One unit's part in one group of dimensions [g0, g1) of the block at d0: the gradient with respect to their logits,
// and what it adds to the gradients with respect to the features of the runs (rows of `sums`).
void group_backward(const NadeBackward& q, int64_t d0, int64_t g0, int64_t g1, int64_t unit, const Rows& V,
                    const float* features, float* sums) {
  const NadeParameters& m = q.model;
  const int64_t F = row_stride(m.F), P = m.P;
  const int64_t first = q.n * unit / kUnits, n = q.n * (unit + 1) / kUnits - first;
  const uint8_t* x = q.x + first * m.D;
  float* gradients = q.logit_gradients + (g0 - d0) * P * kSubBatch + unit * kUnit;
  if (q.grad_logits != nullptr) {
    for (int64_t i = 0; i < n; ++i) {
      const float* given = q.grad_logits + ((first + i) * m.D + g0) * P;
      for (int64_t r = 0; r < (g1 - g0) * P; ++r) gradients[r * kSubBatch + i] = given[r];
    }
  } else {
    if (many_rows(m)) {
      const float* in[kUnit];
      for (int64_t d = g0; d < g1; ++d) {
        for (int64_t i = 0; i < n; ++i) {
          const int64_t row = (first + i) * q.block;
          in[i] = features + (row + q.run[row + d - d0]) * F;
        }
        dots_of_many(in, n, V.data + (d - g0) * P * V.stride, V.stride, P, V.columns,
                     gradients + (d - g0) * P * kSubBatch, kSubBatch);
      }
    } else {
      for (int64_t i = 0; i < n; ++i)
        run_logits(V, P, q.run + (first + i) * q.block - d0, g0, g1, features + (first + i) * q.block * F, F,
                   gradients + i, kSubBatch);
    }
    int32_t states[kUnit] = {};
    float terms[kUnit];
    for (int64_t d = g0; d < g1; ++d) {
      float* logits = gradients + (d - g0) * P * kSubBatch;
      for (int64_t i = 0; i < n; ++i) states[i] = x[i * m.D + d];
      for (int64_t i = 0; i < n; i += kWidth) {
        Vector scale = broadcast(q.grad_constant);
        if (q.grad_log_prob != nullptr)
          scale = load_first(q.grad_log_prob + first + i, static_cast<int>(n - i < kWidth ? n - i : kWidth));
        add_bias(logits + i, kSubBatch, m.b + d * P, P);
        store(terms + i, log_probability<true>(logits + i, kSubBatch, P, load_int(states + i), scale));
      }
      if (q.log_prob != nullptr)
        for (int64_t i = 0; i < n; ++i) q.log_prob[first + i] += static_cast<double>(terms[i]);
    }
  }
  if (many_rows(m)) {
    float* out[kUnit];
    for (int64_t d = g0; d < g1; ++d) {
      for (int64_t i = 0; i < n; ++i) {
        const int64_t row = (first + i) * q.block;
        out[i] = sums + (row + q.run[row + d - d0]) * F;
      }
      const int64_t r = (d - g0) * P;
      combine_many(gradients + r * kSubBatch, kSubBatch, V.data + r * V.stride, V.stride, P, V.columns, out, n);
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const int32_t* run = q.run + (first + i) * q.block - d0;
    for (int64_t d = g0; d < g1;) {
      int64_t end = d + 1;
      while (end < g1 && run[end] == run[d]) ++end;
      const int64_t r = (d - g0) * P;
      combine(gradients + r * kSubBatch + i, kSubBatch, V.data + r * V.stride, V.stride, (end - d) * P, V.columns,
              sums + ((first + i) * q.block + run[d]) * F);
      d = end;
    }
  }
}

}  // namespace

int64_t nade_backward_scratch(const NadeBackward& q) { return BackwardSpace(q.model, q.block, nullptr).size; }

// The samples of units [begin, end): units have nearly equal sizes, and vectors of logit gradients of their own.
void nade_backward_samples(const NadeBackward& q, int64_t d0, int64_t begin, int64_t end, float* scratch) {
  const NadeParameters& m = q.model;
  const int64_t first = q.n * begin / kUnits, n = q.n * end / kUnits - first;
  if (n == 0) return;
  const BackwardSpace s(m, q.block, scratch);
  const int64_t H = row_stride(m.H), F = row_stride(m.F), P = m.P;
  const int64_t d1 = d0 + q.block < m.D ? d0 + q.block : m.D;
  const uint8_t* x = q.x + first * m.D;
  for (int64_t i = 0; i < n; ++i) {
    memcpy(s.activation, q.checkpoints + (d0 / q.block * q.n + first + i) * H, H * sizeof(float));
    if (i + 1 < n)
      for (int64_t d = d0; d < d1 && d < d0 + kReplayAhead; ++d) prefetch_input(m, d, x[(i + 1) * m.D + d]);
    const int64_t row = (first + i) * q.block;
    s.runs[i] =
        static_cast<int32_t>(replay(m, x + i * m.D, d0, d1, s.activation, nullptr, q.hidden + row * H, q.run + row));
  }
  const float* features = q.hidden;
  for (int64_t l = 0; l < m.num_layers; ++l) {
    const int64_t from = row_stride(m.layers[l].inputs), to = row_stride(m.layers[l].outputs);
    int64_t rows = 0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t r = 0; r < s.runs[i]; ++r, ++rows) {
        s.in[rows] = features + ((first + i) * q.block + r) * from;
        s.out[rows] = q.features[l] + ((first + i) * q.block + r) * to;
      }
    layer_forward(m.layers[l], s.in, s.out, rows, s.packed);
    features = q.features[l];
  }
  // The gradient with respect to the features of every run: Σ over its dimensions of V_dᵀ ∂L/∂logits_d.
  float* sums = m.num_layers > 0 ? q.feature_gradients[m.num_layers - 1] : q.suffix;
  for (int64_t i = 0; i < n; ++i) memset(sums + (first + i) * q.block * F, 0, s.runs[i] * F * sizeof(float));

  const int64_t group = group_size(F * P);
  for (int64_t g0 = d0; g0 < d1; g0 += group) {
    const int64_t g1 = g0 + group < d1 ? g0 + group : d1;
    const Rows V = group_rows(m.V + g0 * P * m.F, (g1 - g0) * P, m.F, n, s.packed);
    if (g1 < d1) prefetch(m.V + g1 * P * m.F, (g1 + group < d1 ? group : d1 - g1) * P * m.F);
    for (int64_t unit = begin; unit < end; ++unit) group_backward(q, d0, g0, g1, unit, V, features, sums);
  }
  layers_backward(q, first, n, s.runs, s.packed);

  // ∂L/∂a of a run is h(1 − h) times what stands in its row of `suffix`, which then takes the sum over later runs.
  for (int64_t i = 0; i < n; ++i) {
    float* later = q.later + (first + i) * H;
    for (int64_t r = s.runs[i] - 1; r >= 0; --r) {
      float* row = q.suffix + ((first + i) * q.block + r) * H;
      const float* h = q.hidden + ((first + i) * q.block + r) * H;
      for (int64_t j = 0; j < H; j += kWidth) {
        const Vector hidden = load(h + j), sum = load(later + j);
        const Vector slope = hidden * (1.0f - hidden);
        store(later + j, fused_multiply_add(slope, load(row + j), sum));
        store(row + j, sum);
      }
    }
  }
}

// The gradients of V_d, b_d and W_d for dimensions d0 + [begin, end) of the block.
void nade_backward_dimensions(const NadeBackward& q, int64_t d0, int64_t begin, int64_t end) {
  const NadeParameters& m = q.model;
  const int64_t H = row_stride(m.H), F = row_stride(m.F), P = m.P;
  const float* features = m.num_layers > 0 ? q.features[m.num_layers - 1] : q.hidden;
  const float* x[kSubBatch];
  const float* g[kSubBatch];
  float coefficient[kSubBatch];
  for (int64_t at = begin; at < end; ++at) {
    const int64_t d = d0 + at;
    const float* gradients = q.logit_gradients + at * P * kSubBatch;
    for (int64_t unit = 0; unit < kUnits; ++unit) {
      const int64_t first = q.n * unit / kUnits;
      for (int64_t i = first; i < q.n * (unit + 1) / kUnits; ++i) {
        x[i] = features + (i * q.block + q.run[i * q.block + at]) * F;
        g[i] = gradients + unit * kUnit + i - first;
      }
    }
    accumulate(x, g, kSubBatch, q.n, P, m.F, q.grad_V + d * P * m.F, m.F, q.first);
    for (int64_t k = 0; k < P; ++k) {
      Vector lanes = {};
      for (int64_t unit = 0; unit < kUnits; ++unit) {
        const int64_t size = q.n * (unit + 1) / kUnits - q.n * unit / kUnits;
        for (int64_t i = 0; i < size; i += kWidth)
          lanes += load_first(gradients + k * kSubBatch + unit * kUnit + i,
                              static_cast<int>(size - i < kWidth ? size - i : kWidth));
      }
      const float sum = horizontal_sum(lanes);
      q.grad_b[d * P + k] = q.first ? sum : q.grad_b[d * P + k] + sum;
    }
    const int64_t states = m.scalar_input ? 1 : m.K - 1;
    // Samples by state: counts, then positions.
    int32_t start[257] = {};
    int32_t order[kSubBatch];
    for (int64_t i = 0; i < q.n; ++i) {
      const int state = q.x[i * m.D + d];
      ++start[state == 0 ? 0 : m.scalar_input ? 1 : state];
    }
    int32_t position = 0;
    int32_t next[257];
    for (int64_t k = 0; k <= states; ++k) {
      const int32_t count = start[k];
      start[k] = next[k] = position;
      position += count;
    }
    start[states + 1] = position;
    for (int64_t i = 0; i < q.n; ++i) {
      const int state = q.x[i * m.D + d];
      order[next[state == 0 ? 0 : m.scalar_input ? 1 : state]++] = static_cast<int32_t>(i);
    }
    for (int64_t k = 1; k <= states; ++k) {
      const int64_t count = start[k + 1] - start[k];
      if (count == 0 && !q.first) continue;
      for (int64_t c = 0; c < count; ++c) {
        const int64_t i = order[start[k] + c];
        float scale;
        input_row(m, d, q.x[i * m.D + d], &scale);
        coefficient[c] = scale;
        x[c] = q.suffix + (i * q.block + q.run[i * q.block + at]) * H;
        g[c] = coefficient + c;
      }
      accumulate(x, g, 1, count, 1, m.H, q.grad_W + (d * states + k - 1) * m.H, m.H, q.first);
    }
  }
}

// The gradients of rows [begin, end) of a layer's weight and bias, from one block of dimensions.
void nade_backward_layer(const NadeBackward& q, int64_t d0, int64_t l, int64_t begin, int64_t end, float* scratch) {
  const NadeParameters& m = q.model;
  const DenseLayer& layer = m.layers[l];
  const int64_t size = q.n * q.block;
  const int64_t inputs = row_stride(layer.inputs), outputs = row_stride(layer.outputs);
  const int64_t dims = d0 + q.block < m.D ? q.block : m.D - d0;
  Cutter cut{scratch, 0};
  const float** x = cut.array<const float*>(size);
  const float** g = cut.array<const float*>(size);
  const float* below = l == 0 ? q.hidden : q.features[l - 1];
  int64_t count = 0;
  for (int64_t i = 0; i < q.n; ++i)
    for (int64_t r = 0; r <= q.run[i * q.block + dims - 1]; ++r, ++count) {
      x[count] = below + (i * q.block + r) * inputs;
      g[count] = q.feature_gradients[l] + (i * q.block + r) * outputs + begin;
    }
  const bool overwrite = q.first && d0 + q.block >= m.D;
  accumulate(x, g, 1, count, end - begin, layer.inputs, q.grad_layers[2 * l] + begin * layer.inputs, layer.inputs,
             overwrite);
  float* bias = q.grad_layers[2 * l + 1];
  for (int64_t j = begin; j < end; ++j) {
    float sum = 0.0f;
    for (int64_t c = 0; c < count; ++c) sum += g[c][j - begin];
    bias[j] = overwrite ? sum : bias[j] + sum;
  }
}

int64_t nade_layer_scratch(const NadeBackward& q) {
  Cutter cut{nullptr, 0};
  cut.array<const float*>(q.n * q.block);
  cut.array<const float*>(q.n * q.block);
  return cut.used;
}

// The gradient of c, when every block is done.
void nade_backward_end(const NadeBackward& q) {
  const int64_t H = q.model.H;
  for (int64_t j = 0; j < H; j += kWidth) {
    const int rest = static_cast<int>(H - j < kWidth ? H - j : kWidth);
    Vector sum = q.first ? Vector{} : load_first(q.grad_c + j, rest);
    for (int64_t unit = 0; unit < kUnits; ++unit) {  // two levels, for accuracy
      Vector part = {};
      for (int64_t i = q.n * unit / kUnits; i < q.n * (unit + 1) / kUnits; ++i)
        part += load_first(q.later + i * row_stride(H) + j, rest);
      sum += part;
    }
    store_first(q.grad_c + j, sum, rest);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Sampling.

namespace {

struct SampleSpace {
  float *activation, *hidden, *features[2], *logits, *weights, *packed, *terms;
  uint32_t* words;
  int32_t* states;
  const float** in;
  float** out;
  int64_t size;

  SampleSpace(const NadeParameters& m, float* base) {
    Cutter cut{base, 0};
    int64_t widest = 0;
    for (int64_t l = 0; l < m.num_layers; ++l) widest = m.layers[l].outputs > widest ? m.layers[l].outputs : widest;
    activation = cut.floats(kTile * row_stride(m.H));
    hidden = cut.floats(kTile * row_stride(m.H));
    for (float*& buffer : features) buffer = cut.floats(kTile * row_stride(widest));
    logits = cut.floats(m.P * kTile);
    weights = cut.floats(m.P * kTile);
    packed = cut.floats(packed_floats(m));
    terms = cut.floats(kTile);
    words = cut.array<uint32_t>(4 * kTile);
    states = cut.array<int32_t>(kTile);
    in = cut.array<const float*>(kTile);
    out = cut.array<float*>(kTile);
    size = cut.used;
  }
};

// The words of philox_block(seed, first + i, dimension) for i < n: word w of i goes to words[w·kTile + i].
void philox_lanes(uint64_t seed, uint64_t first, int64_t n, uint32_t dimension, uint32_t* words) {
  constexpr int kLanes = 16;
  for (int64_t start = 0; start < n; start += kLanes) {
    PhiloxBlock block[kLanes];
    for (int i = 0; i < kLanes; ++i) block[i] = philox_block(seed, first + static_cast<uint64_t>(start + i), dimension);
    for (int i = 0; i < kLanes; ++i)
      for (int w = 0; w < 4; ++w) words[w * kTile + start + i] = block[i].word[w];
  }
}

PYAR_INLINE Vector uniforms_from_words(const uint32_t* words) {
  IntVector r;
  memcpy(&r, words, sizeof r);
  r = (r >> 9) & 0x7fffff;
  return (__builtin_convertvector(r, Vector) + 0.5f) * (1.0f / 8388608.0f);
}

// Draws a state per lane as draw.h says; `weights` is work space like the logits. Lanes whose weights are no
// distribution get kNoState. *term: the log-probability of the state drawn.
PYAR_INLINE IntVector draw_states(const float* l, float* weights, int64_t stride, int64_t P, Vector u, Vector* term) {
  if (P == 1) {
    const Vector logit = load(l);
    const Vector highest = maximum(logit, Vector{});  // NaN logits give NaN weights all the same
    const Vector weight0 = exponential(-highest), weight1 = exponential(logit - highest);
    const Vector sum = weight0 + weight1;
    const IntVector zero = (u * sum < weight0) | (weight1 == 0.0f);
    *term = binary_log_probability(logit, ~zero);
    const IntVector state = zero + 1;
    const IntVector valid = sum > 0.0f;
    return (state & valid) | ~valid;
  }
  Vector highest = load(l);
  for (int64_t k = 1; k < P; ++k) highest = maximum(highest, load(l + k * stride));
  Vector sum = {}, parts[4] = {};  // the parts are for the logarithm, as in log_probability()
  IntVector last = {};
  for (int64_t k = 0; k < P; ++k) {
    const Vector weight = exponential(load(l + k * stride) - highest);
    parts[k % 4] += weight;
    const Vector next = sum + weight;
    store(weights + k * stride, next);
    if (k > 0) last = next != sum ? IntVector{} + static_cast<int32_t>(k) : last;
    sum = next;
  }
  const Vector target = u * sum;
  IntVector state = {};
  for (int64_t k = 0; k < P; ++k) state -= load(weights + k * stride) <= target;
  state = state > last ? last : state;
  Vector chosen = load(l);
  for (int64_t k = 1; k < P; ++k) chosen = select(state == static_cast<int32_t>(k), load(l + k * stride), chosen);
  *term = chosen - highest - logarithm((parts[0] + parts[1]) + (parts[2] + parts[3]));
  const IntVector valid = (sum > 0.0f) & (sum <= 3.4028234e38f);
  return (state & valid) | ~valid;
}

bool sample_tile(const NadeSample& q, int64_t first, int64_t n, float* scratch) {
  const NadeParameters& m = q.model;
  const SampleSpace s(m, scratch);
  const int64_t H = row_stride(m.H), P = m.P, D = m.D, G = q.num_given;
  double total[kTile] = {};
  memset(s.logits, 0, P * kTile * sizeof(float));
  memset(s.words, 0, 4 * kTile * sizeof(uint32_t));
  for (int64_t i = 0; i < n; ++i) {
    float* a = s.activation + i * H;
    start_activation(m, a);
    uint8_t* x = q.x + (first + i) * D;
    if (G > 0) memcpy(x, q.given + (first + i) * G, G);
    for (int64_t d = 0; d < G; ++d)
      if (x[d] != 0) add_input(m, d, x[d], a, nullptr);
    update_hidden(a, nullptr, 0.0f, s.hidden + i * H, m.H);
  }
  const Vector temperature = broadcast(q.temperature);
  for (int64_t d = G; d < D; ++d) {
    if (d == G || d % 4 == 0) {
      philox_lanes(q.seed, q.first_index + static_cast<uint64_t>(first), n, static_cast<uint32_t>(d), s.words);
    }
    const float* features = s.hidden;
    int64_t stride = H;
    for (int64_t l = 0; l < m.num_layers; ++l) {
      const int64_t next = row_stride(m.layers[l].outputs);
      float* target = s.features[l % 2];
      int64_t rows = 0;
      for (int64_t i = 0; i < n; ++i) {
        s.in[rows] = features + i * stride;
        s.out[rows] = target + i * next;
        ++rows;
      }
      layer_forward(m.layers[l], s.in, s.out, rows, s.packed);
      features = target;
      stride = next;
    }
    const float* V = m.V + d * P * m.F;
    if (P == 1) {
      dots(V, features, stride, n, m.F, s.logits, 1);
    } else {
      const Rows rows = group_rows(V, P, m.F, n, s.packed);
      for (int64_t i = 0; i < n; ++i) s.in[i] = features + i * stride;
      outputs_ahead(m, d, rows, s.in, n, nullptr, s.logits, kTile);
    }
    for (int64_t i = 0; i < n; i += kWidth) {
      add_bias(s.logits + i, kTile, m.b + d * P, P);
      for (int64_t k = 0; k < P; ++k) store(s.logits + k * kTile + i, load(s.logits + k * kTile + i) / temperature);
      Vector term;
      store_int(s.states + i, draw_states(s.logits + i, s.weights + i, kTile, P,
                                          uniforms_from_words(s.words + (d & 3) * kTile + i), &term));
      store(s.terms + i, term);
    }
    for (int64_t i = 0; i < n; ++i) {
      if (s.states[i] == kNoState) return false;
      if (n > 1) prefetch_input(m, d, s.states[i]);  // a single row is read right away
      total[i] += static_cast<double>(s.terms[i]);
      q.x[(first + i) * D + d] = static_cast<uint8_t>(s.states[i]);
    }
    if (d + 1 == D) break;
    for (int64_t i = 0; i < n; ++i)
      if (s.states[i] != 0) add_input(m, d, s.states[i], s.activation + i * H, s.hidden + i * H);
  }
  for (int64_t i = 0; i < n; ++i) q.log_prob[first + i] = static_cast<float>(total[i]);
  return true;
}

}  // namespace

int64_t nade_sample_scratch(const NadeParameters& model) { return SampleSpace(model, nullptr).size; }

bool nade_sample(const NadeSample& q, int64_t begin, int64_t end, float* scratch) {
  bool good = true;
  for_tiles(begin, end, [&](int64_t first, int64_t n) { good = sample_tile(q, first, n, scratch) && good; });
  return good;
}

}  // namespace pyar::cpu::PYAR_LEVEL
