// PixelLSTM's teacher-forced log-probability and its gradients, for one instruction-set level.
//
// With a_t the sums of step t (before the gates' nonlinearities) and g_b the gradient of log p(x_b), or for each step
// that of log p(x_bt | x_b,<t):
//   ∂logits_t = g (1[x_t] − p_t)
//   ∂h_t      = ∂logits_t W_head + ∂a_{t+1} W_hh + ∂a_t^{layer above} W_ih^{layer above}
//   ∂a_t      = the cell's backward of ∂h_t and ∂c_t
//   ∂W_hh     = Σ_t ∂a_tᵀ h_{t−1},   ∂W_ih = Σ_t ∂a_tᵀ h_t^{layer below},   ∂W_head = Σ_t ∂logits_tᵀ h_t
// and the first layer's ∂W_ih and all biases' from the sum of ∂a_t for each input. The ∂a of one group of steps are
// kept, [N][steps·batch][4·W]: as they lie they are the product's packed operand, both for ∂h and for the parameters.
//
// Every sum has one order, whatever the number of threads: over gates in ascending order for ∂h, pass by pass, over the
// samples and then the steps of a group for the parameters, group by group from the last.
#include "cpu/lstm/step.h"

namespace pyar::cpu::PYAR_LEVEL {

namespace {

// ---- forward ----

void forward(const LstmForward& arguments, int64_t first, int64_t count, const LstmScratch& scratch) {
  const LstmModel& model = *arguments.model;
  const int64_t vectors = head_vectors(model), slot_floats = arguments.batch * model.stride;
  const int64_t offset = first * model.stride;
  Conditional conditional;
  for (int64_t s = 0; s < count; ++s) scratch.log_prob[s] = 0.0;
  for (int64_t t = arguments.first_step; t < arguments.last_step; ++t) {
    const int64_t before = (t - arguments.first_step) % arguments.slots * slot_floats + offset;
    const int64_t after = (t - arguments.first_step + 1) % arguments.slots * slot_floats + offset;
    if (arguments.checkpoints != nullptr && t % arguments.checkpoint_steps == 0) {
      for (int layer = 0; layer < model.layers; ++layer) {
        float* kept = arguments.checkpoints + offset +
                      2 * ((t / arguments.checkpoint_steps) * model.layers + layer) * slot_floats;
        memcpy(kept, arguments.h[layer] + before, count * model.stride * sizeof(float));
        memcpy(kept + slot_floats, arguments.c[layer] + before, count * model.stride * sizeof(float));
      }
    }
    for (int64_t s = 0; s < count; ++s)
      scratch.state[s] = t == 0 ? model.states : arguments.x[(first + s) * arguments.num_dims + t - 1];
    for (int layer = 0; layer < model.layers; ++layer) {
      float* gates = arguments.gates[layer];
      if (gates != nullptr)
        gates += ((t - arguments.first_step) * model.blocks * arguments.batch + first) * kBlockFloats;
      const LayerStep step = {model.layer[layer].table,
                              layer == 0 ? scratch.state : nullptr,
                              layer == 0 ? nullptr : arguments.h[layer - 1] + after,
                              arguments.h[layer] + before,
                              arguments.h[layer] + after,
                              arguments.c[layer] + before,
                              arguments.c[layer] + after,
                              gates,
                              arguments.batch * kBlockFloats,
                              scratch.sums};
      advance_layer<float>(model, model.layer[layer], step, count, 0, model.blocks);
      // What lies behind the units is never read, but it is part of what is kept, which must be the same every time.
      const int64_t units = model.blocks * kWidth;
      for (int64_t s = 0; s < count; ++s) {
        memset(step.h_after + s * model.stride + units, 0, (model.stride - units) * sizeof(float));
        memset(step.c_after + s * model.stride + units, 0, (model.stride - units) * sizeof(float));
      }
    }
    if (arguments.log_prob == nullptr && arguments.conditional == nullptr) continue;
    head_logits(model, arguments.h[model.layers - 1] + after, scratch.logits, count, 0, vectors);
    for (int64_t s = 0; s < count; ++s) {
      weigh(scratch.logits + s * vectors * kWidth, vectors, 1.0f, &conditional);
      float total = 0.0f;
      for (int k = 0; k < model.states; ++k) total += conditional.weights[k];
      const int64_t at = (first + s) * arguments.num_dims + t;
      const double term = log_probability(conditional, arguments.x[at], total);
      scratch.log_prob[s] += term;
      if (arguments.conditional != nullptr) arguments.conditional[at] = static_cast<float>(term);
    }
  }
  if (arguments.log_prob != nullptr)
    for (int64_t s = 0; s < count; ++s) arguments.log_prob[first + s] = static_cast<float>(scratch.log_prob[s]);
}

// ---- backward ----

// Columns of a packed weight for the way back, side by side in one tile.
constexpr int kPanelVectors = kTileVectors;
constexpr int kPanelFloats = kPanelVectors * kWidth;

// The order of the products' rows is that of runs of eight units, gate after gate, whatever a level's blocks are, so
// that all levels with fused multiply-add sum in the same order.
constexpr int kRun = 8;
constexpr int kGroupUnits = kLanes;  // what a pass takes at a time, in units or states

void pack_transposed(const float* weight, int64_t rows, int64_t columns, int gates, float* packed, int64_t first_panel,
                     int64_t last_panel) {
  const int64_t hidden = rows / Cell::kGates;
  const int64_t depth = gates ? padded_units(hidden) * Cell::kGates : rows;
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    const int64_t column = panel * kPanelFloats;
    const int64_t here = columns - column < kPanelFloats ? columns - column : kPanelFloats;
    for (int64_t k = 0; k < depth; ++k) {
      int64_t row = k;
      if (gates) {
        const int64_t gate = k % (Cell::kGates * kRun) / kRun, unit = k / (Cell::kGates * kRun) * kRun + k % kRun;
        row = unit < hidden ? gate * hidden + unit : -1;
      }
      float* to = packed + (panel * depth + k) * kPanelFloats;
      for (int64_t j = 0; j < kPanelFloats; ++j)
        to[j] = row >= 0 && j < here ? weight[row * columns + column + j] : 0.0f;
    }
  }
}

// ∂h and from it ∂a of one layer and step for `count` samples from `first`.
struct BackwardStep {
  const LstmBackward& arguments;
  int layer;
  int64_t t;           // the step
  int64_t first_step;  // of the group
  int64_t first;       // sample

  int64_t group_rows() const { return (arguments.group + 1) * arguments.batch; }

  // ∂a of a layer, unit block and step, at sample `first`.
  float* dgates(int of_layer, int64_t block, int64_t slot) const {
    return arguments.dgates[of_layer] + (block * group_rows() + slot * arguments.batch + first) * kBlockFloats;
  }

  int64_t head_parts() const { return layer + 1 == arguments.model->layers ? ceil_groups(arguments.model->states) : 0; }

  int64_t num_parts() const {
    const int64_t groups = ceil_groups(arguments.model->hidden);
    const int64_t recurrent = t + 1 < arguments.num_dims ? groups : 0;
    return (layer + 1 == arguments.model->layers ? head_parts() : groups) + recurrent;
  }

  static int64_t ceil_groups(int64_t count) { return (count + kGroupUnits - 1) / kGroupUnits; }

  // dh += one part of the product that makes ∂h, for rows row … row + M − 1 and one panel of columns: sixteen states'
  // ∂logits, sixteen units' ∂a of the layer above, or of this layer at the step after this one.
  template <int M>
  PYAR_INLINE void add_part(Vector (&dh)[M][kPanelVectors], int64_t index, int64_t row, int64_t panel) const {
    const LstmModel& model = *arguments.model;
    const int64_t slot = t - first_step;
    if (index < head_parts()) {
#pragma GCC unroll 4
      for (int64_t v = index * kParts; v < (index + 1) * kParts; ++v) {
        const int64_t left = model.states - v * kWidth;
        const float* a = arguments.dlogits + ((v * arguments.group + slot) * arguments.batch + first + row) * kWidth;
        const float* b = arguments.transposed.head + (panel * model.states + v * kWidth) * kPanelFloats;
        multiply_accumulate<M, kPanelVectors>(dh, a, kWidth, 1, b, left < kWidth ? left : kWidth);
      }
      return;
    }
    const bool above = layer + 1 < model.layers && index < ceil_groups(model.hidden);
    const int64_t unit_group = index - (above                       ? 0
                                        : layer + 1 == model.layers ? head_parts()
                                                                    : ceil_groups(model.hidden));
    // The step after this one: within the group, or, after its last step, in the slot behind it.
    const float* a =
        dgates(above ? layer + 1 : layer, unit_group * kParts, above ? slot : slot + 1) + row * kBlockFloats;
    const float* b = above ? arguments.transposed.below[layer + 1] : arguments.transposed.recurrent[layer];
    b += (panel * model.blocks * kBlockFloats + unit_group * Cell::kGates * kGroupUnits) * kPanelFloats;
    const auto add = [&](const float* rows, int64_t depth) __attribute__((always_inline)) {
      multiply_accumulate<M, kPanelVectors>(dh, rows, kBlockFloats, 1, b, depth);
      b += depth * kPanelFloats;
    };
    if constexpr (kWidth == kRun) {
      for (int block = 0; block < kParts; ++block) add(a + block * group_rows() * kBlockFloats, kBlockFloats);
    } else {
      constexpr int kPiece = kWidth < kRun ? kWidth : kRun;
      for (int run = 0; run < kGroupUnits; run += kRun)
        for (int gate = 0; gate < Cell::kGates; ++gate)
          for (int unit = run; unit < run + kRun; unit += kPiece)
            add(a + unit / kWidth * group_rows() * kBlockFloats + gate * kWidth + unit % kWidth, kPiece);
    }
  }

  template <int M>
  PYAR_INLINE void finish(const Vector (&dh)[M][kPanelVectors], int64_t row, int64_t panel) const {
    const LstmModel& model = *arguments.model;
    const int64_t slot_floats = arguments.batch * model.stride, at_step = t - arguments.segment;
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; ++v) {
      const int64_t block = panel * kPanelVectors + v;
      if (block >= model.blocks) break;
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const int64_t sample = first + row + m, at = sample * model.stride + block * kWidth;
        const float* kept =
            arguments.gates[layer] + ((at_step * model.blocks + block) * arguments.batch + sample) * kBlockFloats;
        Vector gate[Cell::kGates];
#pragma GCC unroll 8
        for (int n = 0; n < Cell::kGates; ++n) gate[n] = load(kept + n * kWidth);
        const float* c = arguments.c[layer] + at_step * slot_floats + at;
        float* dc_at = arguments.dc[layer] + at;
        Vector dc = load(dc_at);
        Cell::backward(gate, load(c), load(c + slot_floats), dh[m][v], &dc);
        store(dc_at, dc);
        float* out = dgates(layer, block, t - first_step) + (row + m) * kBlockFloats;
#pragma GCC unroll 8
        for (int n = 0; n < Cell::kGates; ++n) store(out + n * kWidth, gate[n]);
      }
    }
  }

  void run(int64_t count, float* sums) const {
    const LstmModel& model = *arguments.model;
    const int64_t panels = (model.blocks + kPanelVectors - 1) / kPanelVectors, parts = num_parts();
    // Each pass sums from zero and is then added to the passes before it: shorter sums, smaller errors.
    constexpr int64_t at_once = kTileDepth / (Cell::kGates * kGroupUnits);
    for (int64_t panel = 0; panel < panels; ++panel) {
      for (int64_t begin = 0; begin < parts; begin += at_once) {
        const int64_t end = begin + at_once < parts ? begin + at_once : parts;
        for_row_tiles(count, [&](auto tile, int64_t row) __attribute__((always_inline)) {
          constexpr int M = decltype(tile)::rows;
          Vector dh[M][kPanelVectors] = {};
          for (int64_t index = begin; index < end; ++index) add_part(dh, index, row, panel);
          if (begin > 0) {
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
              for (int v = 0; v < kPanelVectors; ++v) dh[m][v] += load(sums + (row + m) * kPanelFloats + v * kWidth);
          }
          if (end == parts) {
            finish<M>(dh, row, panel);
          } else {
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
              for (int v = 0; v < kPanelVectors; ++v) store(sums + (row + m) * kPanelFloats + v * kWidth, dh[m][v]);
          }
        });
      }
    }
  }
};

// ∂logits of one step for the samples first … first + count − 1.
void logit_gradients(const LstmBackward& arguments, int64_t t, int64_t slot, int64_t first, int64_t count,
                     float* logits) {
  const LstmModel& model = *arguments.model;
  const int64_t vectors = head_vectors(model);
  const float* h =
      arguments.h[model.layers - 1] + ((t - arguments.segment + 1) * arguments.batch + first) * model.stride;
  head_logits(model, h, logits, count, 0, vectors);
  Conditional conditional;
  for (int64_t s = 0; s < count; ++s) {
    weigh(logits + s * vectors * kWidth, vectors, 1.0f, &conditional);
    float total = 0.0f;
    for (int k = 0; k < model.states; ++k) total += conditional.weights[k];
    const float g = arguments.grad[(first + s) * arguments.grad_sample + t * arguments.grad_step];
    const Vector scale = broadcast(-g / total);
    for (int64_t v = 0; v < vectors; ++v) {
      float* out = arguments.dlogits + ((v * arguments.group + slot) * arguments.batch + first + s) * kWidth;
      store(out, load(conditional.weights + v * kWidth) * scale);
    }
    const int state = arguments.x[(first + s) * arguments.num_dims + t];
    arguments
        .dlogits[((state / kWidth * arguments.group + slot) * arguments.batch + first + s) * kWidth + state % kWidth] +=
        g;
  }
}

void backward(const LstmBackward& arguments, int64_t first_step, int64_t last_step, int64_t first, int64_t count,
              const LstmScratch& scratch) {
  const LstmModel& model = *arguments.model;
  if (last_step < arguments.num_dims) {
    // The group done before this one: its first step is the one after this group's last.
    for (int layer = 0; layer < model.layers; ++layer) {
      for (int64_t block = 0; block < model.blocks; ++block) {
        float* rows =
            arguments.dgates[layer] + (block * (arguments.group + 1) * arguments.batch + first) * kBlockFloats;
        memcpy(rows + arguments.group * arguments.batch * kBlockFloats, rows, count * kBlockFloats * sizeof(float));
      }
    }
  }
  for (int64_t t = last_step - 1; t >= first_step; --t) {
    logit_gradients(arguments, t, t - first_step, first, count, scratch.logits);
    for (int layer = model.layers - 1; layer >= 0; --layer)
      BackwardStep{arguments, layer, t, first_step, first}.run(count, scratch.sums);
  }
}

// ---- the parameters' gradients ----

// Rows that one sum runs over before it is added to the rest: keeps long sums accurate and their operands in cache.
constexpr int64_t kSumRows = 128;

// to [columns][N·W] += Σ_rows a[row][column]·b[row][N·W].
//   a  [rows][stride], b  [rows][N·W]
template <int N>
void add_outer_products(float* to, const float* a, int64_t stride, const float* b, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; row += kSumRows) {
    const int64_t here = rows - row < kSumRows ? rows - row : kSumRows;
    for_row_tiles(columns, [&](auto tile, int64_t column) __attribute__((always_inline)) {
      constexpr int M = decltype(tile)::rows;
      Vector sum[M][N] = {};
      multiply_accumulate<M, N>(sum, a + row * stride + column, 1, stride, b + row * N * kWidth, here);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
          float* at = to + ((column + m) * N + n) * kWidth;
          store(at, load(at) + sum[m][n]);
        }
      }
    });
  }
}

typedef double DoubleVector __attribute__((vector_size(8 * kWidth)));

// to [kWidth] += the row, in double precision: these sums run over all samples and steps, with nothing to multiply.
PYAR_INLINE void add_row(double* to, const float* row) {
  DoubleVector sum;
  memcpy(&sum, to, sizeof sum);
  sum += __builtin_convertvector(load(row), DoubleVector);
  memcpy(to, &sum, sizeof sum);
}

void accumulate(const LstmBackward& arguments, const LstmGradients& gradients, int64_t first_step, int64_t last_step,
                int64_t item) {
  const LstmModel& model = *arguments.model;
  const int64_t rows = (last_step - first_step) * arguments.batch, slot_floats = arguments.batch * model.stride;
  const int64_t slot = first_step - arguments.segment;  // holds the state before the group's first step
  if (item >= model.layers * model.blocks) {
    const int64_t v = item - model.layers * model.blocks;
    const float* dlogits = arguments.dlogits + v * arguments.group * arguments.batch * kWidth;
    const float* h = arguments.h[model.layers - 1] + (slot + 1) * slot_floats;
    add_outer_products<1>(gradients.head + v * model.hidden * kWidth, h, model.stride, dlogits, rows, model.hidden);
    for (int64_t row = 0; row < rows; ++row) add_row(gradients.head_bias + v * kWidth, dlogits + row * kWidth);
    return;
  }
  const int layer = static_cast<int>(item / model.blocks);
  const int64_t block = item % model.blocks;
  const float* dgates = arguments.dgates[layer] + block * (arguments.group + 1) * arguments.batch * kBlockFloats;
  const int64_t matrix = block * model.hidden * kBlockFloats;
  add_outer_products<Cell::kGates>(gradients.recurrent[layer] + matrix, arguments.h[layer] + slot * slot_floats,
                                   model.stride, dgates, rows, model.hidden);
  if (layer > 0)
    add_outer_products<Cell::kGates>(gradients.below[layer] + matrix, arguments.h[layer - 1] + (slot + 1) * slot_floats,
                                     model.stride, dgates, rows, model.hidden);
  for (int64_t t = first_step; t < last_step; ++t) {
    for (int64_t sample = 0; sample < arguments.batch; ++sample) {
      int64_t input = 0;
      if (layer == 0) input = t == 0 ? model.states : arguments.x[sample * arguments.num_dims + t - 1];
      double* sum = gradients.table[layer] + (input * model.blocks + block) * kBlockFloats;
      const float* row = dgates + ((t - first_step) * arguments.batch + sample) * kBlockFloats;
      for (int gate = 0; gate < Cell::kGates; ++gate) add_row(sum + gate * kWidth, row + gate * kWidth);
    }
  }
}

}  // namespace

extern const LstmGradientKernels lstm_gradient_kernels = {&forward, &pack_transposed, &backward, &accumulate};

}  // namespace pyar::cpu::PYAR_LEVEL
