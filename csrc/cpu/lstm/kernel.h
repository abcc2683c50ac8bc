// What the host code (sample.cpp, log_prob.cpp: checks, memory, threads) and the loops (*_kernel.cpp) have in common.
//
// Widths: W lanes of a vector; N = padded_units(H)/W unit blocks; a block's gates i, f, g, o lie side by side, 4·W
// numbers. Units past H are there, with zero weights: their h and c stay zero.
#pragma once

#include <stdint.h>

#include "cpu/team.h"

namespace pyar::cpu {

constexpr int kMaxLayers = 4;
constexpr int kMaxStates = 256;

// H rounded up to the widest vector, so that the sizes of what is kept for gradients are the same on every level.
constexpr int64_t padded_units(int64_t hidden) { return (hidden + 15) / 16 * 16; }

// The floats from one row of h or c to the next. One more cache line than the units need: rows a power of two apart
// would compete for the same cache sets.
constexpr int64_t row_stride(int64_t hidden) { return padded_units(hidden) + 16; }

// One layer's weights, packed.
struct LstmLayer {
  // The input term and the biases, one row per input: [rows][N][4·W]. First layer: row k < K for state k, row K for the
  // zero input of step 0. Further layers: one row, the biases.
  const float* table;
  // [N][H][4·W] each, float32 or bfloat16; `below` (weight_ih) is null in the first layer.
  const void* below;
  const void* recurrent;
};

struct LstmModel {
  int layers;
  int states;      // K
  int64_t hidden;  // H
  int64_t blocks;  // N
  int64_t stride;  // row_stride(H)
  int bfloat16;    // whether below and recurrent are stored in 16 bits
  LstmLayer layer[kMaxLayers];
  const float* head;       // [⌈K/W⌉][H][W]
  const float* head_bias;  // [⌈K/W⌉·W], −∞ behind the K states
};

// One layer's parameters as torch.nn.LSTM stores them; `inputs` is I.
struct LstmParameters {
  const float* weight_ih;  // [4·H, I]
  const float* weight_hh;  // [4·H, H]
  const float* bias_ih;    // [4·H]
  const float* bias_hh;    // [4·H]
  int64_t inputs;
};

struct LstmSample {
  const LstmModel* model;
  uint64_t seed;
  int64_t first_index;
  int64_t num_dims;  // D
  float temperature;
  const uint8_t* given;  // [num_samples, num_given]
  int64_t num_given;
  uint8_t* x;       // [num_samples, D]
  float* log_prob;  // [num_samples]
  int* failed;      // set to 1 where a conditional is not a distribution
};

// Memory of one slice of `count` samples, floats, for all members of a team; h and c zeroed before use.
struct LstmWorkspace {
  float* h;       // [layers][2][count][stride], the two halves written in turn
  float* c;       // [layers][2][count][stride], likewise where there is a team; else the first half alone
  float* logits;  // [count][⌈K/W⌉·W], where a team shares the head
};

// Memory of each member of a team.
struct LstmScratch {
  float* sums;       // [count][4·W]
  float* logits;     // [count][⌈K/W⌉·W]
  int32_t* state;    // [count]
  float* uniforms;   // [count][4]
  double* log_prob;  // [count]
};

// ---- teacher-forced log-probability and its gradients ----
//
// A segment is a run of steps whose states are in memory together: slot 0 of h and c is the state before its first
// step, slot j + 1 the state after step j of the segment.

struct LstmForward {
  const LstmModel* model;
  const uint8_t* x;  // [batch, D]
  int64_t batch;
  int64_t num_dims;          // D
  int64_t first_step;        // of the segment
  int64_t last_step;         // one past it
  int64_t slots;             // of h and c: steps + 1, or 2 where only the last state is wanted
  float* h[kMaxLayers];      // [slots][batch][stride], slot j mod slots
  float* c[kMaxLayers];      // [slots][batch][stride]
  float* gates[kMaxLayers];  // [steps][N][batch][4·W], or null
  float* checkpoints;  // the states before every checkpoint_steps-th step, [D/…][layers][2][batch][stride], or null
  int64_t checkpoint_steps;
  float* log_prob;     // [batch], and
  float* conditional;  // [batch, D], log p(x_t | x_<t): either or, where the states alone are wanted, both null
};

// The weights for the way back, packed: panels of 4·W columns, ⌈N/4⌉ panels.
struct LstmTransposed {
  const float* head;                   // [panels][K][4·W]
  const float* below[kMaxLayers];      // [panels][N·4·W][4·W], rows as the gates lie
  const float* recurrent[kMaxLayers];  // likewise
};

struct LstmBackward {
  const LstmModel* model;
  LstmTransposed transposed;
  const uint8_t* x;   // [batch, D]
  const float* grad;  // of sample s's conditional at step t: grad[s·grad_sample + t·grad_step]
  int64_t grad_sample, grad_step;
  int64_t batch;
  int64_t num_dims;
  int64_t segment;             // the first step of the segment that h, c and gates hold
  const float* h[kMaxLayers];  // as LstmForward, with a slot for every step
  const float* c[kMaxLayers];
  const float* gates[kMaxLayers];
  // Gradients of one group of steps; `group` of them at most.
  int64_t group;
  float* dc[kMaxLayers];      // [batch][stride], of c after the step that comes next on the way back
  float* dgates[kMaxLayers];  // [N][(group + 1)·batch][4·W], of the pre-activations; slot `group`: the step after the
                              // group
  float* dlogits;             // [⌈K/W⌉][group·batch][W]
};

// Sums over steps and samples, packed, zeroed at first.
struct LstmGradients {
  double* table[kMaxLayers];     // [rows][N][4·W]
  float* below[kMaxLayers];      // [N][H][4·W]
  float* recurrent[kMaxLayers];  // [N][H][4·W]
  float* head;                   // [⌈K/W⌉][H][W]
  double* head_bias;             // [⌈K/W⌉·W]
};

struct LstmKernels {
  int width;  // W
  // Packs the blocks of one layer: into table, and into below and recurrent as float32 or, rounded to nearest even,
  // bfloat16. num_states is K for the first layer, 0 for further ones.
  void (*pack)(const LstmParameters& parameters, int64_t hidden, int num_states, int bfloat16, float* table,
               void* below, void* recurrent, int64_t first_block, int64_t last_block);
  void (*pack_head)(const float* weight, const float* bias, int64_t hidden, int num_states, float* head,
                    float* head_bias);
  // Draws samples first … first + count − 1 of the call, as one of the team's members (team null: alone). `spare` is
  // for a member that goes on alone; null without a team.
  void (*sample)(const LstmSample& arguments, int64_t first, int64_t count, LstmWorkspace workspace,
                 const LstmWorkspace* spare, const LstmScratch& scratch, Team* team, int rank);
};

struct LstmGradientKernels {
  // The log-probability, or only the states, of samples first … first + count − 1.
  void (*forward)(const LstmForward& arguments, int64_t first, int64_t count, const LstmScratch& scratch);
  // Packs weight [rows, columns] for the way back; rows = 4·H in blocks of gates, or, with `gates` 0, as they are.
  void (*pack_transposed)(const float* weight, int64_t rows, int64_t columns, int gates, float* packed,
                          int64_t first_panel, int64_t last_panel);
  // The gradients of the gates and logits for steps last − 1 down to first, one group, and the same samples.
  void (*backward)(const LstmBackward& arguments, int64_t first_step, int64_t last_step, int64_t first, int64_t count,
                   const LstmScratch& scratch);
  // Adds one group's part of the parameters' gradients: item 0 … layers·N − 1 is a unit block of a layer, the further
  // ⌈K/W⌉ are the head's vectors.
  void (*accumulate)(const LstmBackward& arguments, const LstmGradients& gradients, int64_t first_step,
                     int64_t last_step, int64_t item);
};

#define PYAR_DECLARE_LSTM(level)                          \
  namespace level {                                       \
  extern const LstmKernels lstm_kernels;                  \
  extern const LstmGradientKernels lstm_gradient_kernels; \
  }
PYAR_DECLARE_LSTM(baseline)
PYAR_DECLARE_LSTM(avx2)
PYAR_DECLARE_LSTM(avx512)
#undef PYAR_DECLARE_LSTM

}  // namespace pyar::cpu
