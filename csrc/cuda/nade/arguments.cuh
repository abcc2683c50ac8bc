// The arguments of NADE's operations, checked, and the sizes that follow from them: what every launch here needs to
// know.
#pragma once

#include <type_traits>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/nade/step.cuh"

namespace pyar::cuda::nade {

// Contiguous copies of the parameters, where they were not contiguous, and what the kernels read of them.
struct Parameters {
  Tensor W, c, V, b;
  std::vector<Tensor> mlp;  // A [M, inputs] and a [M] of every added layer
  NadeParameters nade;      // H hidden units
  NadeParameters output;    // F in the place of H: the width of V's rows
  int widest;               // of H and the added layers

  // RuntimeError unless their shapes, types and device belong together and the kernels are written for the sizes.
  Parameters(const Tensor& W, const Tensor& c, const Tensor& V, const Tensor& b, const std::vector<Tensor>& mlp);

  int64_t blocks() const { return ceil_div(nade.D, kBlockDims); }
  // Elements of V's rows that a lane has, and warps of a unit: functions of F alone, because they set the order of the
  // sums.
  int per_lane() const { return output.H <= 4 * kWarp ? 4 : 16; }
  int groups() const { return static_cast<int>(ceil_div(output.H, kWarp * per_lane())); }
  int64_t width() const { return static_cast<int64_t>(groups()) * kWarp * per_lane(); }

  int num_layers() const { return static_cast<int>(mlp.size() / 2); }
  // Rows of layer `level`'s output, of h for level 0.
  int units(int level) const { return level == 0 ? nade.H : static_cast<int>(mlp[2 * level - 2].size(0)); }
  // Floats that a row of activations takes, of h and of all layers; none without layers, where no such rows exist.
  int64_t row_floats() const {
    int64_t floats = 0;
    for (int level = 0; num_layers() > 0 && level <= num_layers(); ++level) floats += units(level);
    return floats;
  }
};

// Shared memory of one warp for its sums and its conditional, in bytes.
int64_t warp_bytes(const Parameters& parameters);

// x [N, columns] uint8, contiguous.
Tensor dense_states(const Tensor& x, const char* name, int64_t columns, const Tensor& like);

// A type as a value.
template <typename T>
struct TypeOf {
  using type = T;
};

// Calls f with the kind of conditional and the hidden units of a lane, both known at compile time.
template <typename F>
void with_sizes(const Parameters& parameters, const F& f) {
  const auto with_conditional = [&](auto conditional) {
    if (parameters.per_lane() == 4) {
      f(conditional, std::integral_constant<int, 4>());
    } else {
      f(conditional, std::integral_constant<int, 16>());
    }
  };
  if (parameters.nade.P == 1) {
    with_conditional(TypeOf<Bernoulli>());
  } else {
    with_conditional(TypeOf<Categorical>());
  }
}

}  // namespace pyar::cuda::nade
