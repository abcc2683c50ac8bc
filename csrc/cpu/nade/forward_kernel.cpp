// NADE's log-probabilities and logits of given states, for one instruction-set level.
//
//   log p(x) = Σ_d log p(x_d | x_<d),   p(x_d = k | x_<d) = softmax(logits_d)_k, for K = 2 σ(logit_d) for k = 1
//
// A thread carries a tile of samples along the dimensions, with the activation of every one in its cache.
#include "cpu/nade/step.h"

namespace pyar::cpu::PYAR_LEVEL {
namespace {

constexpr int64_t kForwardBlock = 8;  // dimensions walked between two looks at the output weights, at most

struct ForwardSpace {
  float *units, *bounds, *hidden, *features[2], *logits, *packed, *terms, *spare;
  int32_t *run, *runs, *states;
  const float** in;
  float** out;
  int64_t size;

  ForwardSpace(const NadeParameters& m, float* base) {
    Cutter cut{base, 0};
    const int64_t H = row_stride(m.H);
    int64_t widest = 0;
    for (int64_t l = 0; l < m.num_layers; ++l) widest = m.layers[l].outputs > widest ? m.layers[l].outputs : widest;
    units = cut.floats(kTile * H);
    bounds = cut.floats(kTile);
    spare = cut.floats(H);
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

// total_i += log p(x_id | x_i,<d) for i < n, from the logits V_d f_d of dimension d, to which b_d is added first.
//   logits  [P, n], kTile apart
//   total   [n]
PYAR_INLINE void forward_dimension(const NadeForward& f, int64_t first, int64_t n, int64_t d, float* logits,
                                   const ForwardSpace& s, double* total) {
  const NadeParameters& m = f.model;
  const int64_t P = m.P;
  for (int64_t i = 0; i < n; i += kWidth) add_bias(logits + i, kTile, m.b + d * P, P);
  if (f.logits != nullptr)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < P; ++k) f.logits[((first + i) * m.D + d) * P + k] = logits[k * kTile + i];
  if (f.log_prob == nullptr && f.conditional == nullptr) return;
  for (int64_t i = 0; i < n; ++i) s.states[i] = f.x[(first + i) * m.D + d];
  for (int64_t i = 0; i < n; i += kWidth)
    store(s.terms + i, log_probability<false>(logits + i, kTile, P, load_int(s.states + i), Vector{}));
  for (int64_t i = 0; i < n; ++i) total[i] += static_cast<double>(s.terms[i]);
  if (f.conditional != nullptr)
    for (int64_t i = 0; i < n; ++i) f.conditional[(first + i) * m.D + d] = s.terms[i];
}

// log p(x_i) = Σ_d log p(x_id | x_i,<d), its terms, or the logits, for the samples first + [0, n).
void forward_tile(const NadeForward& f, int64_t first, int64_t n, float* scratch) {
  const NadeParameters& m = f.model;
  const ForwardSpace s(m, scratch);
  const int64_t H = row_stride(m.H), P = m.P;
  const uint8_t* x = f.x + first * m.D;
  double total[kTile] = {};
  const auto units = [&](int64_t i) { return Units{s.units + i * H, s.bounds + i}; };
  start_units(m, units(0));
  for (int64_t i = 1; i < n; ++i) copy_units(m, units(0), units(i));
  memset(s.logits, 0, kForwardBlock * P * kTile * sizeof(float));  // the lanes without a sample

  if (many_rows(m) && m.num_layers == 0) {
    // One dimension after the other, so that one row of hidden units a sample is enough and stays in the cache.
    for (int64_t i = 0; i < n; ++i) {
      read_units(m, units(i), s.hidden + i * H);
      s.in[i] = s.hidden + i * H;
    }
    for (int64_t d = 0; d < m.D; ++d) {
      outputs_ahead(m, d, s.in, n, x + d, s.packed, s.logits, kTile);
      forward_dimension(f, first, n, d, s.logits, s, total);
      if (d + 1 == m.D) break;
      for (int64_t i = 0; i < n; ++i)
        if (x[i * m.D + d] != 0) add_input(m, x + i * m.D, d, units(i), s.hidden + i * H, s.spare);
    }
  } else if (m.rows != nullptr) {
    for (int64_t d0 = 0; d0 < m.D; d0 += kStrip) {
      const int64_t dims = kStrip < m.D - d0 ? kStrip : m.D - d0;
      for (int64_t i = 0; i < n; ++i) {
        const uint8_t* states = x + i * m.D;
        float* hidden = s.hidden + i * H;
        float logits[kStrip];
        // The last run's hidden units are kept where it goes on in the next strip.
        (states[d0 + dims - 1] == 0 ? walk_strip<Keep::last> : walk_strip<Keep::none>)(m, states, d0, dims, d0 == 0,
                                                                                       units(i), hidden, nullptr,
                                                                                       logits, s.spare);
        for (int64_t at = 0; at < dims; ++at) s.logits[at * kTile + i] = logits[at];
      }
      for (int64_t at = 0; at < dims; ++at) forward_dimension(f, first, n, d0 + at, s.logits + at * kTile, s, total);
    }
  } else if (m.P == 1 && m.num_layers == 0) {
    // One output row a dimension: the rows of a run are multiplied with the hidden units as these are made. They are
    // kept where the run is long or goes on in the next block.
    const int64_t most = group_size(row_stride(m.F)), block = most < kForwardBlock ? most : kForwardBlock;
    for (int64_t d0 = 0; d0 < m.D; d0 += block) {
      const int64_t d1 = d0 + block < m.D ? d0 + block : m.D;
      const Rows V = output_rows(m, d0, d1 - d0, n, s.packed);
      for (int64_t i = 0; i < n; ++i) {
        const uint8_t* states = x + i * m.D;
        float* hidden = s.hidden + i * H;
        for (int64_t d = d0; d < d1;) {
          int64_t end = d + 1;
          while (end < d1 && states[end - 1] == 0) ++end;
          const Rows rows = {V.data + (d - d0) * V.stride, V.stride, V.columns};
          float* logits = s.logits + (d - d0) * kTile + i;
          if (d == 0) {
            read_units(m, units(i), hidden, rows, end - d, logits, kTile);
          } else if (states[d - 1] != 0) {
            const bool kept = end - d > kFusedRows || (end == d1 && states[d1 - 1] == 0);
            add_input(m, states, d - 1, units(i), kept ? hidden : nullptr, rows, end - d, logits, kTile, s.spare);
          } else {
            dots(hidden, rows.data, rows.stride, end - d, rows.columns, logits, kTile);
          }
          d = end;
        }
      }
      for (int64_t d = d0; d < d1; ++d) forward_dimension(f, first, n, d, s.logits + (d - d0) * kTile, s, total);
    }
  } else {
    for (int64_t d0 = 0; d0 < m.D; d0 += kForwardBlock) {
      const int64_t d1 = d0 + kForwardBlock < m.D ? d0 + kForwardBlock : m.D;
      for (int64_t i = 0; i < n; ++i) {
        float* hidden = s.hidden + i * kForwardBlock * H;
        const bool unchanged = d0 > 0 && x[i * m.D + d0 - 1] == 0;
        s.runs[i] = static_cast<int32_t>(replay(m, x + i * m.D, d0, d1, units(i),
                                                unchanged ? hidden + (s.runs[i] - 1) * H : nullptr, hidden,
                                                s.run + i * kForwardBlock, s.spare));
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

}  // namespace

// Rows [begin, end) of the table: the factors of W, and V padded.
void nade_table(const NadeParameters& m, const NadeTable& table, int64_t begin, int64_t end) {
  for (int64_t d = begin; d < end; ++d)
    table.largest[d] = make_factors(m.W + d * m.H, m.H, table.factors + d * row_stride(m.H));
  if (table.rows != nullptr) pack_rows(m.V + begin * m.F, end - begin, m.F, table.rows + begin * row_stride(m.F));
}

int64_t nade_forward_scratch(const NadeParameters& model) { return ForwardSpace(model, nullptr).size; }

void nade_forward(const NadeForward& f, int64_t begin, int64_t end, float* scratch) {
  for_tiles(begin, end, [&](int64_t first, int64_t n) { forward_tile(f, first, n, scratch); });
}
}  // namespace pyar::cpu::PYAR_LEVEL
