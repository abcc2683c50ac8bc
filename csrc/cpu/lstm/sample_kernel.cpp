// PixelLSTM's packing and sampling, for one instruction-set level. What they compute is in pyar/reference/lstm.py.
#include "common/draw.h"
#include "common/philox.h"
#include "cpu/lstm/step.h"

namespace pyar::cpu::PYAR_LEVEL {

namespace {

// ---- packing ----

PYAR_INLINE void store_weight(float* p, float value) { *p = value; }

PYAR_INLINE void store_weight(Bfloat16* p, float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  *p = static_cast<Bfloat16>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// weight [4·H, H] → packed [blocks][H][4·W] for blocks first … last − 1.
template <class Weight>
void pack_matrix(const float* weight, int64_t hidden, Weight* packed, int64_t first, int64_t last) {
  for (int64_t block = first; block < last; ++block) {
    Weight* out = packed + block * hidden * kBlockFloats;
    // Sixteen columns at a time: a cache line of every row is read once.
    for (int64_t column = 0; column < hidden; column += 16) {
      const int64_t end = column + 16 < hidden ? column + 16 : hidden;
      for (int gate = 0; gate < Cell::kGates; ++gate) {
        for (int lane = 0; lane < kWidth; ++lane) {
          const int64_t unit = block * kWidth + lane;
          const float* row = weight + (gate * hidden + unit) * hidden;
          for (int64_t k = column; k < end; ++k)
            store_weight(out + k * kBlockFloats + gate * kWidth + lane, unit < hidden ? row[k] : 0.0f);
        }
      }
    }
  }
}

void pack(const LstmParameters& parameters, int64_t hidden, int num_states, int bfloat16, float* table, void* below,
          void* recurrent, int64_t first, int64_t last) {
  const int64_t blocks = padded_units(hidden) / kWidth;
  const int64_t rows = num_states + 1;
  for (int64_t block = first; block < last; ++block) {
    for (int gate = 0; gate < Cell::kGates; ++gate) {
      for (int lane = 0; lane < kWidth; ++lane) {
        const int64_t unit = block * kWidth + lane, row = gate * hidden + unit;
        const float bias = unit < hidden ? parameters.bias_ih[row] + parameters.bias_hh[row] : 0.0f;
        float* out = table + block * kBlockFloats + gate * kWidth + lane;
        const int64_t step = blocks * kBlockFloats;
        for (int k = 0; k < num_states; ++k) {
          float term = 0.0f;
          if (unit < hidden)
            term = parameters.inputs == 1 ? parameters.weight_ih[row] * (static_cast<float>(k) / (num_states - 1))
                                          : parameters.weight_ih[row * num_states + k];
          out[k * step] = term + bias;
        }
        out[(rows - 1) * step] = bias;
      }
    }
  }
  if (bfloat16) {
    if (below != nullptr) pack_matrix(parameters.weight_ih, hidden, static_cast<Bfloat16*>(below), first, last);
    pack_matrix(parameters.weight_hh, hidden, static_cast<Bfloat16*>(recurrent), first, last);
  } else {
    if (below != nullptr) pack_matrix(parameters.weight_ih, hidden, static_cast<float*>(below), first, last);
    pack_matrix(parameters.weight_hh, hidden, static_cast<float*>(recurrent), first, last);
  }
}

// weight [K, H] → head [⌈K/W⌉][H][W].
void pack_head(const float* weight, const float* bias, int64_t hidden, int num_states, float* head, float* head_bias) {
  const int64_t vectors = (num_states + kWidth - 1) / kWidth;
  for (int64_t v = 0; v < vectors; ++v) {
    for (int lane = 0; lane < kWidth; ++lane) {
      const int64_t state = v * kWidth + lane;
      head_bias[state] = state < num_states ? bias[state] : -__builtin_inff();
      for (int64_t k = 0; k < hidden; ++k)
        head[(v * hidden + k) * kWidth + lane] = state < num_states ? weight[state * hidden + k] : 0.0f;
    }
  }
}

// ---- sampling ----

// Where a team is to share the head's work too, rather than have every member do all of it.
constexpr int64_t kSharedHeadVectors = 5;

template <class Weight>
void sample_as(const LstmSample& arguments, int64_t first_sample, int64_t count, LstmWorkspace workspace,
               const LstmWorkspace* spare, const LstmScratch& scratch, Team* team, int rank) {
  const LstmModel& model = *arguments.model;
  const int64_t size = team != nullptr ? team->size : 1, vectors = head_vectors(model);
  int64_t first = rank * model.blocks / size, last = (rank + 1) * model.blocks / size;
  const int64_t state_floats = count * model.stride;
  int64_t meetings = 0;
  // Whether this member goes on. If it goes on alone, it does again what was to be shared last, in memory of its own,
  // since the others may still be writing; and it has rank 0, which writes the results.
  const auto meet_others = [&](bool* again) {
    const Meeting meeting = meet(team, &meetings);
    *again = meeting == Meeting::alone;
    if (!*again) return meeting == Meeting::together;
    memcpy(spare->h, workspace.h, 2 * model.layers * state_floats * sizeof(float));
    memcpy(spare->c, workspace.c, 2 * model.layers * state_floats * sizeof(float));
    workspace = *spare;
    team = nullptr, rank = 0, first = 0, last = model.blocks;
    return true;
  };
  const bool halves = team != nullptr;
  Conditional conditional;
  for (int64_t s = 0; s < count; ++s) {
    scratch.state[s] = model.states;  // the table's row for the zero input of step 0
    scratch.log_prob[s] = 0.0;
  }
  for (int64_t d = 0; d < arguments.num_dims; ++d) {
    bool again = false;
    for (int layer = 0; layer < model.layers; layer += again ? 0 : 1) {
      float* h = workspace.h + 2 * layer * state_floats;
      float* c = workspace.c + 2 * layer * state_floats;
      const int64_t before = (d & 1) * state_floats, after = ((d + 1) & 1) * state_floats;
      const LayerStep step = {model.layer[layer].table,
                              layer == 0 ? scratch.state : nullptr,
                              layer == 0 ? nullptr : h - 2 * state_floats + after,
                              h + before,
                              h + after,
                              c + (halves ? before : 0),
                              c + (halves ? after : 0),
                              nullptr,
                              0,
                              scratch.sums};
      advance_layer<Weight>(model, model.layer[layer], step, count, first, last);
      if (!meet_others(&again)) return;
    }
    const float* top = workspace.h + (2 * (model.layers - 1) + ((d + 1) & 1)) * state_floats;
    if (d < arguments.num_given) {
      for (int64_t s = 0; s < count; ++s) {
        const int state = arguments.given[(first_sample + s) * arguments.num_given + d];
        if (rank == 0) arguments.x[(first_sample + s) * arguments.num_dims + d] = static_cast<uint8_t>(state);
        scratch.state[s] = state;
      }
      continue;
    }
    const bool shares_head = team != nullptr && vectors >= kSharedHeadVectors;
    if (shares_head) {
      head_logits(model, top, workspace.logits, count, rank * vectors / size, (rank + 1) * vectors / size);
      if (!meet_others(&again)) return;
    }
    const float* logits = shares_head && !again ? workspace.logits : scratch.logits;
    if (logits == scratch.logits) head_logits(model, top, scratch.logits, count, 0, vectors);
    for (int64_t s = 0; s < count; ++s) {
      float* uniforms = scratch.uniforms + 4 * s;
      if ((d & 3) == 0 || d == arguments.num_given) {
        const PhiloxBlock block = philox_block(
            arguments.seed, static_cast<uint64_t>(arguments.first_index + first_sample + s), static_cast<uint32_t>(d));
        for (int word = 0; word < 4; ++word) uniforms[word] = uniform_from_word(block.word[word]);
      }
      weigh(logits + s * vectors * kWidth, vectors, arguments.temperature, &conditional);
      float total;
      const int state = draw_state(conditional.weights, model.states, uniforms[d & 3], &total);
      if (state == kNoState) {
        // Every member of a team comes to the same end here, so none is left waiting.
        __atomic_store_n(arguments.failed, 1, __ATOMIC_RELAXED);
        return;
      }
      scratch.log_prob[s] += log_probability(conditional, state, total);
      scratch.state[s] = state;
      if (rank == 0) arguments.x[(first_sample + s) * arguments.num_dims + d] = static_cast<uint8_t>(state);
    }
  }
  if (rank == 0)
    for (int64_t s = 0; s < count; ++s) arguments.log_prob[first_sample + s] = static_cast<float>(scratch.log_prob[s]);
}

void sample(const LstmSample& arguments, int64_t first, int64_t count, LstmWorkspace workspace,
            const LstmWorkspace* spare, const LstmScratch& scratch, Team* team, int rank) {
  if (arguments.model->bfloat16)
    sample_as<Bfloat16>(arguments, first, count, workspace, spare, scratch, team, rank);
  else
    sample_as<float>(arguments, first, count, workspace, spare, scratch, team, rank);
}

}  // namespace

extern const LstmKernels lstm_kernels = {kWidth, &pack, &pack_head, &sample};

}  // namespace pyar::cpu::PYAR_LEVEL
