// RNADE on the CPU: what rnade.cpp hands to the kernels (*_kernel.cpp) of the instruction-set level in use.
//
// B batch, D dimensions, H hidden units, C components, P = 3C outputs a dimension.
#pragma once

#include <stdint.h>

#include "cpu/activation.h"
#include "cpu/family.h"

namespace pyar::cpu {

struct RnadeParameters {
  const float* W;    // [D, H]
  const float* c;    // [H]
  const float* rho;  // [D]
  const float* V;    // [D, P, H]
  const float* b;    // [D, P]
  int64_t D, H, C, P;
  Family family;
  Activation activation;
  float min_scale;
};

struct RnadeForward {
  RnadeParameters model;
  const float* x;      // [B, D]
  float* log_prob;     // [B], or null
  float* conditional;  // [B, D], log p(x_d | x_<d), or null
};

constexpr int64_t kRnadeTile = 32;  // samples of a gradient that go together
constexpr int64_t kRnadeSubBatch =
    16 * kRnadeTile;  // samples whose gradients are computed together, at any thread count

// Gradients of one sub-batch of n samples in tiles, in blocks of steps from the last to the first.
struct RnadeBackward {
  RnadeParameters model;
  const float* x;                 // [n, D]
  const float* grad_log_prob;     // [n], or
  const float* grad_conditional;  // [n, D]
  int64_t n, tiles, block;        // block: steps a block
  float* checkpoints;             // [blocks, tiles, rnade_tile_floats()], a at the first step of every block
  float* later;                   // [tiles, rnade_tile_floats()], Σ ∂L/∂a_d over the steps done
  float* partial;                 // [tiles, block, rnade_part_floats()], what each tile adds to a step's gradients
  bool first;                     // the gradients below are overwritten, not added to
  float* grad_x;                  // [n, D], or null
  float *grad_W, *grad_c, *grad_rho, *grad_V, *grad_b;
};

inline __attribute__((always_inline)) int64_t rnade_part_floats(int64_t H, int64_t P) {
  const int64_t row = (H + 15) / 16 * 16;
  return (P + 1) * row + (P + 15) / 16 * 16 + 16;
}

struct RnadeSample {
  RnadeParameters model;
  uint64_t seed, first_index;
  const int64_t* dims;  // [D], the dimension whose uniforms a step takes; null: its own
  const float* given;   // [n, num_given], or null
  int64_t num_given;
  float* x;         // [n, D]
  float* log_prob;  // [n], of what is drawn
};

// The _scratch functions tell the size of a work space in floats.
#define PYAR_RNADE_KERNELS                                                                  \
  int64_t rnade_forward_scratch(const RnadeParameters&);                                    \
  void rnade_forward(const RnadeForward&, int64_t begin, int64_t end, float* scratch);      \
  int64_t rnade_tile_floats(const RnadeParameters&);                                        \
  void rnade_checkpoints(const RnadeBackward&, int64_t tile);                               \
  int64_t rnade_backward_scratch(const RnadeBackward&);                                     \
  void rnade_backward_tile(const RnadeBackward&, int64_t d0, int64_t tile, float* scratch); \
  void rnade_backward_sums(const RnadeBackward&, int64_t d0, int64_t begin, int64_t end);   \
  void rnade_backward_end(const RnadeBackward&);                                            \
  int64_t rnade_sample_scratch(const RnadeParameters&);                                     \
  /* Draws samples begin … end−1; returns false if a conditional was no distribution. */    \
  bool rnade_sample(const RnadeSample&, int64_t begin, int64_t end, float* scratch);

namespace baseline {
PYAR_RNADE_KERNELS
}
namespace avx2 {
PYAR_RNADE_KERNELS
}
namespace avx512 {
PYAR_RNADE_KERNELS
}
#undef PYAR_RNADE_KERNELS

}  // namespace pyar::cpu
