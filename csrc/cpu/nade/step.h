// What NADE's log-probability, gradients and sampling share: the hidden units, the added layers, the conditionals.
//
//   a_d = c + Σ_{i<d} W[i, x_i]    h_d = σ(a_d)    f_d = layers(h_d)    logits_d = V_d f_d + b_d
//
// Uria, Côté, Gregor, Murray & Larochelle, "Neural Autoregressive Distribution Estimation", JMLR 17 (2016), equations
// (2) and (3). State 0 contributes nothing, so a, h and f change only after a state above 0: what depends on them is
// computed once for each run of dimensions, a maximal stretch over which they stay the same.
#pragma once

#include "cpu/conditionals.h"
#include "cpu/nade/units.h"

namespace pyar::cpu::PYAR_LEVEL {

// ---------------------------------------------------------------------------------------------------------------------
// The added layers.

// Floats of the packed copy of any group: of output rows, or of a layer's rows.
inline int64_t packed_floats(const NadeParameters& m) {
  int64_t widest = row_stride(m.F) * m.P * group_size(row_stride(m.F) * m.P);
  for (int64_t l = 0; l < m.num_layers; ++l) {
    const int64_t row = row_stride(m.layers[l].inputs);
    const int64_t floats = row * group_size(row);
    widest = floats > widest ? floats : widest;
  }
  return widest;
}

// One added layer on many rows: out[i][m] = max(0, Σ_j weight[m, j] in[i][j] + bias[m]) for i < count.
//   in      [count][inputs], padded
//   out     [count][outputs], padded with zeros
//   packed  [packed_floats()], work space
inline void layer_forward(const DenseLayer& layer, const float* const* in, float* const* out, int64_t count,
                          float* packed) {
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

// l_k += b_k for all lanes.
//   l  [P, kWidth]
//   b  [P]
PYAR_INLINE void add_bias(float* l, int64_t stride, const float* b, int64_t P) {
  for (int64_t k = 0; k < P; ++k) store(l + k * stride, load(l + k * stride) + broadcast(b[k]));
}

// ---------------------------------------------------------------------------------------------------------------------
// The logits of dimensions, without their biases: V_d f_d.

// Whether a dimension has output rows enough for a product with all samples; else one sample's run of dimensions is
// the product.
PYAR_INLINE bool many_rows(const NadeParameters& m) { return m.P >= kBlockRows; }

// logits[k·out_stride + i] = Σ_j V_d[k, j] in[i][j] for k < P, i < n. Meanwhile memory is asked for what comes next:
// the following output rows, and the rows of W of the states, if they are known.
//   in      [n][F], the features of the samples
//   x       [n], D apart: the states of dimension d; or null
//   packed  [packed_floats()], work space
//   logits  [P, n]
inline void outputs_ahead(const NadeParameters& m, int64_t d, const float* const* in, int64_t n, const uint8_t* x,
                          float* packed, float* logits, int64_t out_stride) {
  constexpr int64_t kTogether = 8;
  const float* V = m.V + d * m.P * m.F;
  const int64_t most = rows_at_once(row_stride(m.F)), left = (m.D - d) * m.P;
  const int64_t parts = (n + kTogether - 1) / kTogether;
  for (int64_t k = 0; k < m.P; k += most) {
    const int64_t count = most < m.P - k ? most : m.P - k;
    const Rows rows = group_rows(V + k * m.F, count, m.F, n, packed);
    const float* next = V + (k + count) * m.F;
    const int64_t size = (most < left - k - count ? most : left - k - count) * m.F;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = part * kTogether, end = begin + kTogether < n ? begin + kTogether : n;
      const int64_t from = padded(size * part / parts), to = padded(size * (part + 1) / parts);
      prefetch(next + from, to - from);
      if (x != nullptr && k == 0)
        for (int64_t i = begin; i < end; ++i) prefetch_input(m, d, x[i * m.D]);
      dots_of_many(in + begin, end - begin, rows.data, rows.stride, count, rows.columns,
                   logits + k * out_stride + begin, out_stride);
    }
  }
}

// The output rows of dimensions d … d + count − 1 where P = 1, for `uses` samples.
//   packed  [packed_floats()], work space
PYAR_INLINE Rows output_rows(const NadeParameters& m, int64_t d, int64_t count, int64_t uses, float* packed) {
  if (m.rows != nullptr) return {m.rows + d * row_stride(m.F), row_stride(m.F), padded(m.F)};
  return group_rows(m.V + d * m.F, count, m.F, uses, packed);
}

// logits[((d − d0)·P + k)·out_stride] = Σ_j V_d[k, j] features[run_d, j] for d0 ≤ d < d1, k < P, of one sample: one
// product for the dimensions of a run.
//   V         [(d1 − d0)·P, F], the rows of the dimensions
//   run       the run of dimension d at run[d]
//   features  [runs, F], `stride` floats apart
//   logits    [(d1 − d0)·P]
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

// ---------------------------------------------------------------------------------------------------------------------
// Work space.

// Cuts arrays from one allocation; with base = null only their size is counted.
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

// ---------------------------------------------------------------------------------------------------------------------
// Tiles.

// The samples [begin, end) in tiles of nearly equal size.
template <typename Function>
PYAR_INLINE void for_tiles(int64_t begin, int64_t end, const Function& function) {
  const int64_t tiles = (end - begin + kTile - 1) / kTile;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = begin + (end - begin) * t / tiles, last = begin + (end - begin) * (t + 1) / tiles;
    function(first, last - first);
  }
}

}  // namespace pyar::cpu::PYAR_LEVEL
