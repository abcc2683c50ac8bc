// NADE's passes over given states: log-probabilities, logits and the gradients of these, by the step of step.cuh.
//
// The dimensions can be cut into blocks of kBlockDims, which run side by side from a at their start; with added layers
// (layers.cuh), nade_hidden_kernel writes the h that the first of them reads.
#pragma once

#include "cuda/nade/step.cuh"

namespace pyar::cuda::nade {

// a at the start of every block of kBlockDims dimensions: starts[block, n, h], by the same additions in the same order
// as in the other kernels. One thread a (n, h); grid (⌈H / blockDim⌉, samples).
struct StartsArguments {
  NadeParameters nade;
  const uint8_t* x;  // [N, D]
  float* starts;     // [⌈D / 16⌉, N, H]
  int64_t N;
};

static __global__ void __launch_bounds__(128) nade_starts_kernel(const StartsArguments p) {
  const NadeParameters& nade = p.nade;
  const int h = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int64_t n = blockIdx.y;
  if (h >= nade.H) return;
  const uint8_t* const x = p.x + n * nade.D;
  const int64_t blocks = (nade.D + kBlockDims - 1) / kBlockDims;
  float a = nade.c[h];
  for (int64_t block = 0; block < blocks; ++block) {
    p.starts[(block * p.N + n) * nade.H + h] = a;
    // All of a block's loads are under way before the first addition.
    float value[kBlockDims], scale[kBlockDims];
#pragma unroll
    for (int i = 0; i < kBlockDims; ++i) {
      const int64_t d = block * kBlockDims + i;
      const int state = d < nade.D ? x[d] : 0;
      const bool adds = state > 0 && state < nade.K;
      value[i] = adds ? __ldg(nade.W + (d * nade.R + nade.row(state)) * nade.H + h) : 0.0f;
      scale[i] = adds ? nade.scale(state) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kBlockDims; ++i) {
      if (scale[i] != 0.0f) a = fmaf(scale[i], value[i], a);
    }
  }
}

// h of all rows, from a at the start of every block. One thread a (block, n, h); grid (⌈H / 128⌉ · blocks, N).
struct HiddenArguments {
  NadeParameters nade;
  const uint8_t* x;     // [N, D]
  const float* starts;  // [blocks, N, H], from first_block on
  float* hidden;        // [blocks, N, kBlockDims, H]
  int64_t N;
  int first_block;
  int blocks;
};

static __global__ void __launch_bounds__(128) nade_hidden_kernel(const HiddenArguments p) {
  const NadeParameters& nade = p.nade;
  const int64_t block = blockIdx.x % p.blocks;
  const int h = static_cast<int>(blockIdx.x) / p.blocks * 128 + static_cast<int>(threadIdx.x);
  const int64_t n = blockIdx.y;
  if (h >= nade.H) return;
  float a = p.starts[(block * p.N + n) * nade.H + h];
  for (int i = 0; i < kBlockDims; ++i) {
    p.hidden[((block * p.N + n) * kBlockDims + i) * nade.H + h] = sigmoid(a);
    const int64_t d = (p.first_block + block) * kBlockDims + i;
    const int state = d < nade.D ? p.x[n * nade.D + d] : 0;
    if (state > 0 && state < nade.K) {
      a = fmaf(nade.scale(state), __ldg(nade.W + (d * nade.R + nade.row(state)) * nade.H + h), a);
    }
  }
}

struct TeacherArguments {
  NadeParameters nade;
  const uint8_t* x;       // [N, D]
  const float* starts;    // [blocks, N, H], or null: every unit starts at dimension 0
  const float* features;  // [blocks, N, kBlockDims, H]: what added layers made of h, from first_block on; or null
  int first_block;
  const float* upstream;  // [N]: ∂L/∂ log p(x_n), or null: `weight` for all
  float weight;
  double* block_log_prob;  // [blocks, N] with starts or features, else [1, N]; or null
  float* logits;           // [N, D, P] or null
  float* gradient;         // [N, D, P]: ∂L/∂ logits, or null
  int64_t N;
  int units;   // samples a thread block
  int groups;  // warps a unit; the block has exactly units · groups warps
};

// The conditionals of given states. Grid (⌈N / units⌉, blocks of dimensions, or 1 without starts and features). Shared
// memory: warp_floats for each of the units · groups warps.
template <typename Conditional, int kPerLane>
__global__ void __launch_bounds__(256, 1) nade_teacher_kernel(const TeacherArguments p) {
  const NadeParameters& nade = p.nade;
  const Place place = Place::of<kPerLane>(p.groups);
  const int64_t stride = warp_floats<Conditional>(nade.P, p.groups);
  float* const sums = reinterpret_cast<float*>(dynamic_shared()) + (place.unit * p.groups + place.group) * stride;
  Conditional conditional(sums + (p.groups > 1 ? nade.P : 0), nade.P);
  const int64_t index = static_cast<int64_t>(blockIdx.x) * p.units + place.unit;
  const bool writes = index < p.N && place.group == 0;
  const int64_t n = index < p.N ? index : p.N - 1;
  const bool split = p.starts != nullptr || p.features != nullptr;
  const int block = p.first_block + static_cast<int>(blockIdx.y);
  const int begin = split ? block * kBlockDims : 0;
  const int end = split && begin + kBlockDims < nade.D ? begin + kBlockDims : nade.D;

  float a[kPerLane], h[kPerLane];
  if (p.starts != nullptr) {
    load_row(p.starts + (static_cast<int64_t>(block) * p.N + n) * nade.H, place, nade.H, nade.vector, a);
  } else if (p.features == nullptr) {
    load_row(nade.c, place, nade.H, nade.vector, a);
  }
  const float weight = p.upstream != nullptr ? p.upstream[n] : p.weight;
  bool stale = true;
  double total = 0.0, block_total = 0.0;
  int states = 0;  // of dimension d / 32 · 32 + lane

  for (int d = begin; d < end; ++d) {
    if (p.groups > 1) __syncthreads();  // nobody reads the exchange of step d − 1 any more
    if (d == begin || d % kWarp == 0) {
      const int mine = d / kWarp * kWarp + place.lane;
      states = mine < nade.D ? p.x[n * nade.D + mine] : 0;
    }
    const int state = __shfl_sync(kFullWarp, states, d % kWarp);
    if (p.features != nullptr) {
      const int64_t row = (static_cast<int64_t>(blockIdx.y) * p.N + n) * kBlockDims + (d - begin);
      load_row(p.features + row * nade.H, place, nade.H, nade.vector, h);
    } else if (stale) {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) h[i] = sigmoid(a[i]);
      stale = false;
    }
    const int64_t outputs = (n * nade.D + d) * nade.P;
    conditional_logits(
        h, nade.b + static_cast<int64_t>(d) * nade.P, nade.P, p.groups, true, place, sums, stride,
        [&](int k, float (&value)[kPerLane]) {
          load_row(nade.V + (static_cast<int64_t>(d) * nade.P + k) * nade.H, place, nade.H, nade.vector, value);
        },
        1.0f, p.logits != nullptr && writes ? p.logits + outputs : nullptr, conditional);
    block_total += static_cast<double>(conditional.log_probability(state));
    if (p.gradient != nullptr && writes) {
      for (int k = place.lane; k < nade.P; k += kWarp) {
        p.gradient[outputs + k] = weight * conditional.gradient(k, state);
      }
    }
    if (d % kBlockDims == kBlockDims - 1 || d == nade.D - 1) {
      total += block_total;
      block_total = 0.0;
    }
    if (p.features == nullptr && state > 0 && state < nade.K) {
      float value[kPerLane];
      load_row(nade.W + (static_cast<int64_t>(d) * nade.R + nade.row(state)) * nade.H, place, nade.H, nade.vector,
               value);
      add_row(a, value, nade.scale(state));
      stale = true;
    }
  }
  if (p.block_log_prob != nullptr && writes && place.lane == 0) {
    p.block_log_prob[static_cast<int64_t>(block) * p.N + n] = total;
  }
}

// Σ_block block_log_prob[block, n], upwards, into log_prob [N] and exact [N]; either may be null. One thread a sample.
static __global__ void __launch_bounds__(128)
    nade_sum_blocks_kernel(const double* block_log_prob, int64_t blocks, int64_t N, float* log_prob, double* exact) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= N) return;
  double total = 0.0;
  for (int64_t block = 0; block < blocks; ++block) total += block_log_prob[block * N + n];
  if (log_prob != nullptr) log_prob[n] = static_cast<float>(total);
  if (exact != nullptr) exact[n] = total;
}

}  // namespace pyar::cuda::nade
