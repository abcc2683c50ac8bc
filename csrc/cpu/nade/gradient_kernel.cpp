// NADE's gradients, for one instruction-set level: of a sub-batch of samples, in blocks of dimensions from the last to
// the first.
//
// With g the gradient of log p(x) and z_d = logits_d (a gradient of the logits may be given instead):
//   ∂z_d = g (1[x_d] − softmax(z_d)), for K = 2 g (x_d − σ(z_d)); g may be one for each conditional, g_d
//   ∂V_d = Σ_samples ∂z_d f_dᵀ,   ∂b_d = Σ_samples ∂z_d
//   ∂f_d = V_dᵀ ∂z_d,   ∂h_d = the layers' backward of ∂f_d,   ∂a_d = h_d (1 − h_d) ∂h_d
//   ∂W[d, k] = Σ_{samples with x_d = k} Σ_{e>d} ∂a_e,   ∂c = Σ_samples Σ_d ∂a_d
//
// Over a run of dimensions h stays the same, so ∂h is summed over the run before its slope is applied once; with two
// states, whose runs are short, at every dimension. The units are kept at the start of every block and walk on from
// there in the same steps, to the same bits.
//
// Every sum over samples has one order, so that results depend on no thread count.
#include "cpu/nade/gradient_products.h"
#include "cpu/nade/step.h"

namespace pyar::cpu::PYAR_LEVEL {

// checkpoints[d0/block], bounds[d0/block] = the units at the start d0 of every block, and later = 0, for samples
// [begin, end).
void nade_checkpoints(const NadeBackward& q, int64_t begin, int64_t end) {
  const NadeParameters& m = q.model;
  const int64_t H = row_stride(m.H);
  const auto units = [&](int64_t block, int64_t i) {
    return Units{q.checkpoints + (block * q.n + i) * H, q.bounds + block * q.n + i};
  };
  for (int64_t i = begin; i < end; ++i) {
    start_units(m, units(0, i));
    memset(q.later + i * H, 0, H * sizeof(float));
  }
  // A block's rows of W serve all samples while they are in the cache.
  for (int64_t block = 0; (block + 1) * q.block < m.D; ++block) {
    const int64_t d0 = block * q.block, d1 = d0 + q.block;
    for (int64_t i = begin; i < end; ++i) {
      const uint8_t* x = q.x + i * m.D;
      if (i + 1 < end)
        for (int64_t d = d0; d < d1; ++d) prefetch_input(m, d, x[m.D + d]);
      walk_units(m, x, d0, d1, units(block, i), units(block + 1, i), nullptr);
    }
  }
}

namespace {

struct BackwardSpace {
  float *units, *bound, *packed, *spare;
  int32_t* runs;
  const float** in;
  float** out;
  int64_t size;

  BackwardSpace(const NadeParameters& m, int64_t block, float* base) {
    Cutter cut{base, 0};
    units = cut.floats(row_stride(m.H));
    bound = cut.floats(1);
    spare = cut.floats(row_stride(m.H));
    packed = cut.floats(packed_floats(m));
    runs = cut.array<int32_t>(kSubBatch);
    in = cut.array<const float*>(m.num_layers > 0 ? kSubBatch * block : 0);
    out = cut.array<float*>(m.num_layers > 0 ? kSubBatch * block : 0);
    size = cut.used;
  }
};

// Runs the layers backwards, ∂in = weightᵀ (1[out > 0] ∂out), on the runs of samples first + [0, n): from the gradient
// with respect to the last layer's outputs to that with respect to h, which is stored where `suffix` will be.
//   runs    [n]
//   packed  [packed_floats()], work space
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
// and what it adds to the gradients with respect to the features of the runs, sums[run_d] += Σ_k ∂z_dk V_d[k].
//   V         [(g1 − g0)·P, F], the output rows of the group
//   features  [n, block, F], sums [n, block, F], of the whole sub-batch; rows row_stride(F) apart
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
    float terms[kUnit], scales[kUnit];
    for (int64_t d = g0; d < g1; ++d) {
      float* logits = gradients + (d - g0) * P * kSubBatch;
      for (int64_t i = 0; i < n; ++i) states[i] = x[i * m.D + d];
      const float* scales_of_all = q.grad_log_prob == nullptr ? nullptr : q.grad_log_prob + first;
      if (q.grad_conditional != nullptr) {
        for (int64_t i = 0; i < n; ++i) scales[i] = q.grad_conditional[(first + i) * m.D + d];
        scales_of_all = scales;
      }
      for (int64_t i = 0; i < n; i += kWidth) {
        Vector scale = broadcast(q.grad_constant);
        if (scales_of_all != nullptr)
          scale = load_first(scales_of_all + i, static_cast<int>(n - i < kWidth ? n - i : kWidth));
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

// Everything of a block that belongs to one sample, for the samples of units [begin, end): hidden units, logits,
// gradients of the logits, `suffix` and `later`. Units have nearly equal sizes, and vectors of logit gradients of their
// own.
void nade_backward_samples(const NadeBackward& q, int64_t d0, int64_t begin, int64_t end, float* scratch) {
  const NadeParameters& m = q.model;
  const int64_t first = q.n * begin / kUnits, n = q.n * end / kUnits - first;
  if (n == 0) return;
  const BackwardSpace s(m, q.block, scratch);
  const int64_t H = row_stride(m.H), F = row_stride(m.F), P = m.P;
  const int64_t d1 = d0 + q.block < m.D ? d0 + q.block : m.D;
  const uint8_t* x = q.x + first * m.D;
  const Units units = {s.units, s.bound};
  for (int64_t i = 0; i < n; ++i) {
    const int64_t checkpoint = d0 / q.block * q.n + first + i;
    copy_units(m, {q.checkpoints + checkpoint * H, q.bounds + checkpoint}, units);
    if (i + 1 < n)
      for (int64_t d = d0; d < d1 && d < d0 + kReplayAhead; ++d) prefetch_input(m, d, x[(i + 1) * m.D + d]);
    const int64_t row = (first + i) * q.block;
    s.runs[i] =
        static_cast<int32_t>(replay(m, x + i * m.D, d0, d1, units, nullptr, q.hidden + row * H, q.run + row, s.spare));
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

namespace {

// out[j] = scale·x[j] for j < n.
//   x  [n], padded
PYAR_INLINE void scale_row(const float* x, float scale, int64_t n, float* out) {
  const Vector factor = broadcast(scale);
  int64_t j = 0;
  for (; j + kWidth <= n; j += kWidth) store(out + j, load(x + j) * factor);
  if (j < n) store_first(out + j, load(x + j) * factor, static_cast<int>(n - j));
}

// nade_backward_dimensions for one sample, where there is nothing to sum: most of a per-sample gradient's time.
void one_sample_dimensions(const NadeBackward& q, int64_t d0, int64_t begin, int64_t end) {
  const NadeParameters& m = q.model;
  const float* features = m.num_layers > 0 ? q.features[m.num_layers - 1] : q.hidden;
  const int64_t states = m.scalar_input ? 1 : m.K - 1;
  for (int64_t at = begin; at < end; ++at) {
    const int64_t d = d0 + at;
    const float* gradients = q.logit_gradients + at * m.P * kSubBatch + (kUnits - 1) * kUnit;  // the sample's unit
    for (int64_t k = 0; k < m.P; ++k) {
      scale_row(features + q.run[at] * row_stride(m.F), gradients[k * kSubBatch], m.F, q.grad_V + (d * m.P + k) * m.F);
      q.grad_b[d * m.P + k] = gradients[k * kSubBatch];
    }
    const int state = q.x[d];
    float* rows = q.grad_W + d * states * m.H;
    const int64_t hit = state == 0 ? -1 : m.scalar_input ? 0 : state - 1;
    for (int64_t k = 0; k < states; ++k)
      if (k != hit) memset(rows + k * m.H, 0, m.H * sizeof(float));
    if (hit < 0) continue;
    float scale;
    input_row(m, d, state, &scale);
    scale_row(q.suffix + q.run[at] * row_stride(m.H), scale, m.H, rows + hit * m.H);
  }
}

}  // namespace

// ∂V_d = Σ_i ∂z_id f_idᵀ, ∂b_d = Σ_i ∂z_id and ∂W[d, k] = Σ_{i: x_id = k} suffix_id for dimensions d0 + [begin, end) of
// the block.
void nade_backward_dimensions(const NadeBackward& q, int64_t d0, int64_t begin, int64_t end) {
  if (q.n == 1) return one_sample_dimensions(q, d0, begin, end);
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
      Vector lanes[kParts] = {};
      for (int64_t unit = 0; unit < kUnits; ++unit) {
        const int64_t size = q.n * (unit + 1) / kUnits - q.n * unit / kUnits;
        for (int p = 0; p < kParts; ++p)
          lanes[p] += load_first(gradients + k * kSubBatch + unit * kUnit + p * kWidth, lanes_of_part(size, p));
      }
      const float sum = sum_of_lanes(lanes);
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

// ∂weight = Σ ∂out inᵀ and ∂bias = Σ ∂out over the runs of one block of dimensions, rows [begin, end) of a layer.
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

// ---------------------------------------------------------------------------------------------------------------------
// Two states, with the table: a unit's part of a block, forwards a strip at a time, with the logits made together with
// the hidden units, then backwards. What a unit keeps of a block stays in its thread's second-level cache.

namespace {

struct UnitSpace {
  float *hidden, *logits, *terms, *spare;
  int32_t *run, *states, *masks;
  int64_t size;

  UnitSpace(const NadeParameters& m, int64_t block, float* base) {
    Cutter cut{base, 0};
    hidden = cut.floats(kUnit * block * row_stride(m.H));
    logits = cut.floats(kUnit * padded(block));
    terms = cut.floats(padded(block));
    spare = cut.floats(2 * row_stride(m.H));
    run = cut.array<int32_t>(kUnit * block);
    states = cut.array<int32_t>(padded(block));
    masks = cut.array<int32_t>(kUnit * padded(block));
    size = cut.used;
  }
};

// Where the sums over a unit's samples for one dimension go.
struct Target {
  float* row;  // [H]
  bool add;
};

PYAR_INLINE void put(const Target& target, int64_t j, int64_t H, Vector sum) {
  float* p = target.row + j;
  if (j + kWidth <= H) return store(p, target.add ? load(p) + sum : sum);
  if (j >= H) return;
  const int left = static_cast<int>(H - j);
  store_first(p, target.add ? load_first(p, left) + sum : sum, left);
}

// The sums over n samples for kDims dimensions of a strip, from the last to the first, and the columns j of kVectors
// vectors:
//   ∂W_d[j] = Σ_i x_id later_i[j],   ∂V_d[j] = Σ_i g_id h_id[j],   later_i[j] += h_id[j] (1 − h_id[j]) g_id V_d[j]
//   h      [n][kDims], rows [H] of hidden units, padded
//   g      [n, kDims], mask [n, kDims]: −1 where x_id = 1; both `width` apart
//   same   [n]: whether the states are all 0, so that h is the same in the whole strip
//   later  [n, H], V [kDims, H], both row_stride(H) apart and padded
template <int kDims, int kVectors>
PYAR_INLINE void strip_columns(const float* const (*h)[kStrip], const float* g, const int32_t* mask, int64_t width,
                               const bool* same, int64_t n, float* later, const float* V, int64_t stride, int64_t j,
                               int64_t H, const Target* grad_V, const Target* grad_W) {
  Vector sum_V[kDims][kVectors] = {}, sum_W[kDims][kVectors] = {};
  for (int64_t i = 0; i < n; ++i) {
    const float* gradient = g + i * width;
    const int32_t* state = mask + i * width;
    Vector after[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) after[v] = load(later + i * stride + j + v * kWidth);
    if (same[i]) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = j + v * kWidth;
        const Vector hidden = load(h[i][0] + at);
        Vector gradient_h = {};
#pragma GCC unroll 4
        for (int d = kDims - 1; d >= 0; --d) {
          gradient_h = fused_multiply_add(broadcast(gradient[d]), load(V + d * stride + at), gradient_h);
          sum_V[d][v] = fused_multiply_add(broadcast(gradient[d]), hidden, sum_V[d][v]);
        }
        after[v] = fused_multiply_add(hidden * (1.0f - hidden), gradient_h, after[v]);
      }
    } else {
#pragma GCC unroll 4
      for (int d = kDims - 1; d >= 0; --d) {
        const Vector weight = broadcast(gradient[d]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const int64_t at = j + v * kWidth;
          const Vector hidden = load(h[i][d] + at);
          sum_W[d][v] += (Vector)((IntVector)after[v] & state[d]);
          sum_V[d][v] = fused_multiply_add(weight, hidden, sum_V[d][v]);
          after[v] = fused_multiply_add(hidden * (1.0f - hidden), weight * load(V + d * stride + at), after[v]);
        }
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(later + i * stride + j + v * kWidth, after[v]);
  }
#pragma GCC unroll 4
  for (int d = 0; d < kDims; ++d) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      put(grad_V[d], j + v * kWidth, H, sum_V[d][v]);
      put(grad_W[d], j + v * kWidth, H, sum_W[d][v]);
    }
  }
}

template <int kDims>
__attribute__((noinline)) void strip_backward(const float* const (*h)[kStrip], const float* g, const int32_t* mask,
                                              int64_t width, const bool* same, int64_t n, float* later, const float* V,
                                              int64_t H, const Target* grad_V, const Target* grad_W) {
  constexpr int kVectors = kWidth == 16 ? 2 : 1;  // as many sums as the registers hold
  const int64_t stride = row_stride(H);
  int64_t j = 0;
  for (; j + kVectors * kWidth <= padded(H); j += kVectors * kWidth)
    strip_columns<kDims, kVectors>(h, g, mask, width, same, n, later, V, stride, j, H, grad_V, grad_W);
  for (; j < H; j += kWidth)
    strip_columns<kDims, 1>(h, g, mask, width, same, n, later, V, stride, j, H, grad_V, grad_W);
}

// logits [dims] → their gradients, for dimensions d0 + [0, dims) of sample i.
void logit_gradients(const NadeBackward& q, int64_t d0, int64_t dims, int64_t i, const UnitSpace& s, float* logits) {
  const NadeParameters& m = q.model;
  if (q.grad_logits != nullptr) {
    memcpy(logits, q.grad_logits + i * m.D + d0, dims * sizeof(float));
    return;
  }
  const uint8_t* x = q.x + i * m.D + d0;
  Vector scale = broadcast(q.grad_log_prob != nullptr ? q.grad_log_prob[i] : q.grad_constant);
  for (int64_t j = 0; j < dims; j += kWidth) {
    const int left = static_cast<int>(dims - j < kWidth ? dims - j : kWidth);
    if (q.grad_conditional != nullptr) scale = load_first(q.grad_conditional + i * m.D + d0 + j, left);
    store(logits + j, load(logits + j) + load_first(m.b + d0 + j, left));
    for (int64_t k = j; k < j + kWidth; ++k) s.states[k] = k < dims ? x[k] : 0;
    store(s.terms + j, log_probability<true>(logits + j, 0, 1, load_int(s.states + j), scale));
  }
  if (q.log_prob != nullptr)
    for (int64_t j = 0; j < dims; ++j) q.log_prob[i] += static_cast<double>(s.terms[j]);
}

}  // namespace

int64_t nade_unit_scratch(const NadeBackward& q) { return UnitSpace(q.model, q.block, nullptr).size; }

// Everything of the block at d0 that belongs to the samples of one unit. Its units walk on in their checkpoint, which
// is not needed again.
void nade_unit_backward(const NadeBackward& q, int64_t d0, int64_t turn, int64_t unit, float* scratch) {
  const NadeParameters& m = q.model;
  const UnitSpace s(m, q.block, scratch);
  const int64_t first = q.n * unit / q.units, n = q.n * (unit + 1) / q.units - first;
  const int64_t H = row_stride(m.H), width = padded(q.block), dims = d0 + q.block < m.D ? q.block : m.D - d0;
  memset(s.logits, 0, kUnit * width * sizeof(float));
  for (int64_t begin = 0; begin < dims; begin += kStrip) {
    const int64_t count = kStrip < dims - begin ? kStrip : dims - begin;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t checkpoint = d0 / q.block * q.n + first + i;
      walk_strip<Keep::all>(m, q.x + (first + i) * m.D, d0 + begin, count, begin == 0,
                            {q.checkpoints + checkpoint * H, q.bounds + checkpoint}, s.hidden + i * q.block * H,
                            s.run + i * q.block + begin, s.logits + i * width + begin, s.spare);
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    logit_gradients(q, d0, dims, first + i, s, s.logits + i * width);
    for (int64_t at = 0; at < dims; ++at) s.masks[i * width + at] = q.x[(first + i) * m.D + d0 + at] != 0 ? -1 : 0;
  }

  // A lone unit writes where the sums belong, others to their part of `partial`.
  const int64_t part = turn * q.units + unit;
  float* const partial = q.partial + part * q.block * 2 * H;
  float* const partial_b = q.units > 1 ? q.partial_b + part * width : q.grad_b + d0;
  const bool add = q.units == 1 && !q.first;
  for (int64_t at = 0; at < dims; at += kWidth) {
    const int left = static_cast<int>(dims - at < kWidth ? dims - at : kWidth);
    Vector sum = {};
    for (int64_t i = 0; i < n; ++i) sum += load(s.logits + i * width + at);
    store_first(partial_b + at, add ? load_first(partial_b + at, left) + sum : sum, left);
  }
  const auto strip = [&](int64_t begin, int64_t count) {
    const float* h[kUnit][kStrip];
    bool same[kUnit];
    Target grad_V[kStrip], grad_W[kStrip];
    for (int64_t i = 0; i < n; ++i) {
      same[i] = true;
      for (int64_t at = begin; at < begin + count; ++at) {
        h[i][at - begin] = s.hidden + (i * q.block + s.run[i * q.block + at]) * H;
        same[i] = same[i] && s.masks[i * width + at] == 0;
      }
    }
    for (int64_t at = begin; at < begin + count; ++at) {
      const bool whole = q.units == 1;
      grad_V[at - begin] = {whole ? q.grad_V + (d0 + at) * m.H : partial + 2 * at * H, add};
      grad_W[at - begin] = {whole ? q.grad_W + (d0 + at) * m.H : partial + (2 * at + 1) * H, add};
    }
    (count == kStrip ? strip_backward<kStrip> : strip_backward<1>)(h, s.logits + begin, s.masks + begin, width, same, n,
                                                                   q.later + first * H, m.rows + (d0 + begin) * H, m.H,
                                                                   grad_V, grad_W);
  };
  int64_t end = dims;
  for (; end % kStrip != 0; --end) strip(end - 1, 1);
  for (; end > 0; end -= kStrip) strip(end - kStrip, kStrip);
}

// The gradients of the rows of V, W and b of dimensions d0 + [begin, end) from the parts of several units.
void nade_unit_sums(const NadeBackward& q, int64_t d0, int64_t turn, int64_t begin, int64_t end) {
  const NadeParameters& m = q.model;
  const int64_t H = row_stride(m.H), width = padded(q.block);
  for (int64_t at = begin; at < end; ++at) {
    for (int64_t which = 0; which < 2; ++which) {
      const float* part = q.partial + ((turn * q.units * q.block + at) * 2 + which) * H;
      const Target target = {(which == 0 ? q.grad_V : q.grad_W) + (d0 + at) * m.H, !q.first};
      for (int64_t j = 0; j < m.H; j += kWidth) {
        Vector sum = load(part + j);
        for (int64_t unit = 1; unit < q.units; ++unit) sum += load(part + unit * q.block * 2 * H + j);
        put(target, j, m.H, sum);
      }
    }
    const float* part = q.partial_b + turn * q.units * width + at;
    float sum = 0.0f;
    for (int64_t unit = 0; unit < q.units; ++unit) sum += part[unit * width];
    q.grad_b[d0 + at] = q.first ? sum : q.grad_b[d0 + at] + sum;
  }
}

// ∂c = Σ_i later_i, when every block is done.
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
}  // namespace pyar::cpu::PYAR_LEVEL
