// NADE's forward kernels: sampling, and log-probabilities, logits and their gradients of given states.
//
//   a_d = c + Σ_{i<d} W[i, x_i]     h_d = σ(a_d)     logits_d = V_d h_d + b_d          (Uria et al. 2016, eq. 2 and 3)
//
// A *unit* is the one warp, or the several warps if H > 512, that carry one sample through the dimensions, with a and h
// in registers: warp g of a unit has the hidden units g·32·kPerLane …, lane l of it the fours 4 (l + 32 j) …. The sum
// over H has one order, whatever the batch, the kernel and the copies: in a lane fused multiply-adds upwards, then over
// the lanes as warp_sum does it, then over the warps upwards. State 0 adds nothing to a, so h is kept and not computed
// anew after it.
#pragma once

#include <type_traits>

#include "common/philox.h"
#include "cuda/conditional.cuh"
#include "cuda/device.cuh"

namespace pyar::cuda {

// Log-probabilities are summed in double over blocks of this many dimensions, and the blocks' sums in their order; the
// gradient keeps a at the start of every block.
constexpr int kBlockDims = 16;

// Rows of V and W on their way to shared memory: the present step's, the next, and the one after.
constexpr int kStages = 3;

struct NadeParameters {
  const float* W;  // [D, R, H], R = K − 1, or [D, H] and R = 1 for scalar input
  const float* c;  // [H]
  const float* V;  // [D, P, H]
  const float* b;  // [D, P]
  int D, H, P, R;
  int K;
  bool scalar;  // the input is x/(K−1) rather than one-hot
  bool vector;  // rows are 16-byte aligned: H % 4 = 0 and the bases are aligned

  // The row of W that state (≥ 1) adds at step d, and what multiplies it.
  PYAR_HOST_DEVICE int row(int state) const { return scalar ? 0 : state - 1; }
  PYAR_HOST_DEVICE float scale(int state) const {
    return scalar ? static_cast<float>(state) / static_cast<float>(K - 1) : 1.0f;
  }
};

// Which part of a sample's hidden units this thread has.
struct Place {
  int lane;
  int unit;   // of the thread block
  int group;  // warp within the unit
  int first;  // the lane's first hidden unit

  template <int kPerLane>
  static PYAR_DEVICE Place of(int groups) {
    Place place;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    place.lane = static_cast<int>(threadIdx.x) % kWarp;
    place.unit = warp / groups;
    place.group = warp % groups;
    place.first = place.group * kWarp * kPerLane + 4 * place.lane;
    return place;
  }
};

// This lane's elements of a row [H] in global memory, zeros beyond H.
template <int kPerLane>
PYAR_DEVICE void load_row(const float* row, const Place& place, int H, bool vector, float (&value)[kPerLane]) {
#pragma unroll
  for (int j = 0; j < kPerLane / 4; ++j) {
    const int h = place.first + j * 4 * kWarp;
    if (vector) {
      float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (h < H) four = __ldg(reinterpret_cast<const float4*>(row + h));
      value[4 * j] = four.x, value[4 * j + 1] = four.y, value[4 * j + 2] = four.z, value[4 * j + 3] = four.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) value[4 * j + i] = h + i < H ? __ldg(row + h + i) : 0.0f;
    }
  }
}

// The same from a row in shared memory that has zeros up to the unit's full width.
template <int kPerLane>
PYAR_DEVICE void load_staged(const float* row, const Place& place, float (&value)[kPerLane]) {
#pragma unroll
  for (int j = 0; j < kPerLane / 4; ++j) {
    const float4 four = *reinterpret_cast<const float4*>(row + place.first + j * 4 * kWarp);
    value[4 * j] = four.x, value[4 * j + 1] = four.y, value[4 * j + 2] = four.z, value[4 * j + 3] = four.w;
  }
}

// The lane's part of row · h.
template <int kPerLane>
PYAR_DEVICE float dot(const float (&row)[kPerLane], const float (&h)[kPerLane]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) sum = fmaf(row[i], h[i], sum);
  return sum;
}

// Shared memory of one warp for its sums and its conditional, in floats.
template <typename Conditional>
PYAR_HOST_DEVICE int64_t warp_floats(int P, int groups) {
  return (groups > 1 ? P : 0) + Conditional::shared_floats(P);
}

// The logits V_d h + b_d of one unit, into its warps' conditionals. `row(k, value)` loads the lane's part of row k of
// V_d; sums [P] is this warp's place in shared memory for its part of the sums over H if there are several warps, and
// stride the distance between their places. All threads of the block call this together, those that work and others.
template <typename Conditional, int kPerLane, typename Row>
PYAR_DEVICE void conditional_logits(const float (&h)[kPerLane], const float* b_d, int P, int groups, bool working,
                                    const Place& place, float* sums, int64_t stride, const Row& row, float temperature,
                                    float* logits_out, Conditional& conditional) {
  if constexpr (std::is_same_v<Conditional, Bernoulli>) {
    float logit = 0.0f;
    if (working) {
      float value[kPerLane];
      row(0, value);
      logit = warp_sum(dot(value, h));
      if (groups > 1 && place.lane == 0) sums[0] = logit;
    }
    if (groups > 1) __syncthreads();
    if (working) {
      if (groups > 1) {
        const float* const first = sums - place.group * stride;
        logit = first[0];
        for (int group = 1; group < groups; ++group) logit += first[group * stride];
      }
      logit += __ldg(b_d);
      if (logits_out != nullptr && place.lane == 0) logits_out[0] = logit;
      conditional.set(logit, temperature);
    }
  } else {
    float* const logits = conditional.logits();
    if (working) {
      float* const to = groups > 1 ? sums : logits;
      __syncwarp();  // all lanes have done with the last step's conditional
      for (int first = 0; first < P; first += 8) {
        float part[8];
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          part[k] = 0.0f;
          if (first + k < P) {
            float value[kPerLane];
            row(first + k, value);
            part[k] = dot(value, h);
          }
        }
        const float sum = warp_sum_8(part, place.lane);
        const int k = first + place.lane / 4;
        if (place.lane % 4 == 0 && k < P) to[k] = groups > 1 ? sum : sum + __ldg(b_d + k);
      }
    }
    if (groups > 1) {
      __syncthreads();
      if (working) {
        const float* const from = sums - place.group * stride;
        for (int k = place.lane; k < P; k += kWarp) {
          float logit = from[k];
          for (int group = 1; group < groups; ++group) logit += from[group * stride + k];
          logits[k] = logit + __ldg(b_d + k);
        }
      }
    }
    if (working) {
      if (logits_out != nullptr) {
        __syncwarp();
        for (int k = place.lane; k < P; k += kWarp) logits_out[k] = logits[k];
      }
      conditional.set(temperature);
    }
  }
}

// a ← a + scale · row.
template <int kPerLane>
PYAR_DEVICE void add_row(float (&a)[kPerLane], const float (&row)[kPerLane], float scale) {
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) a[i] = fmaf(scale, row[i], a[i]);
}

struct SampleArguments {
  NadeParameters nade;
  const int64_t* seed;   // []
  const uint8_t* given;  // [N, G]
  uint8_t* x;            // [N, D]
  float* log_prob;       // [N], of the drawn part
  int64_t N;
  int64_t first_index;
  int G;
  float temperature;
  int units;   // samples a thread block
  int groups;  // warps a unit; the block may have more warps, which help with the copies
};

// Rows of a stage in shared memory: P of V, then R of W, each padded to the width of a unit.
PYAR_DEVICE void copy_stage(const NadeParameters& nade, int d, int width, float* stage) {
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int r = static_cast<int>(threadIdx.x) / kWarp; r < nade.P + nade.R; r += warps) {
    const float* from = r < nade.P ? nade.V + (static_cast<int64_t>(d) * nade.P + r) * nade.H
                                   : nade.W + (static_cast<int64_t>(d) * nade.R + (r - nade.P)) * nade.H;
    float* to = stage + static_cast<int64_t>(r) * width;
    if (nade.vector) {
      for (int h = 4 * lane; h < nade.H; h += 4 * kWarp) copy_async_16(to + h, from + h);
    } else {
      for (int h = lane; h < nade.H; h += kWarp) copy_async_4(to + h, from + h);
    }
  }
}

// Draws units · gridDim.x samples, all D steps. Shared memory: kStages stages of (P + R) · width floats if kStaged,
// then warp_floats for each of the units · groups warps.
template <typename Conditional, int kPerLane, bool kStaged>
__global__ void __launch_bounds__(kStaged ? 512 : 256, 1) nade_sample_kernel(const SampleArguments p) {
  const NadeParameters& nade = p.nade;
  const int width = p.groups * kWarp * kPerLane;
  const int64_t stage_floats = static_cast<int64_t>(nade.P + nade.R) * width;
  float* const stages = reinterpret_cast<float*>(dynamic_shared());
  const Place place = Place::of<kPerLane>(p.groups);
  const bool working = place.unit < p.units;
  const int64_t stride = warp_floats<Conditional>(nade.P, p.groups);
  float* const sums = stages + (kStaged ? kStages * stage_floats : 0) + (place.unit * p.groups + place.group) * stride;
  Conditional conditional(sums + (p.groups > 1 ? nade.P : 0), nade.P);

  if constexpr (kStaged) {
    // The copies fill the first H floats of every row; what is behind them stays zero.
    for (int64_t i = threadIdx.x; i < kStages * stage_floats; i += blockDim.x) stages[i] = 0.0f;
    __syncthreads();
    for (int d = 0; d < kStages - 1; ++d) {
      if (d < nade.D) copy_stage(nade, d, width, stages + d * stage_floats);
      copy_async_commit();
    }
  }

  // The last block's surplus units repeat the last sample and write nothing.
  const int64_t index = static_cast<int64_t>(blockIdx.x) * p.units + place.unit;
  const bool writes = working && index < p.N && place.group == 0;
  const int64_t n = index < p.N ? index : p.N - 1;
  const uint64_t seed = static_cast<uint64_t>(*p.seed);
  const uint64_t sample = static_cast<uint64_t>(p.first_index) + static_cast<uint64_t>(n);

  float a[kPerLane], h[kPerLane];
  if (working) load_row(nade.c, place, nade.H, nade.vector, a);
  bool stale = true;  // h does not belong to a
  double total = 0.0, block_total = 0.0;
  int kept_state = 0;  // of the dimension whose last five bits are this lane's number
  PhiloxBlock random = {};

  for (int d = 0; d < nade.D; ++d) {
    const float* stage = stages + (d % kStages) * stage_floats;
    if constexpr (kStaged) {
      copy_async_wait<kStages - 2>();
      // From here on step d's rows are there for all threads, and nobody reads those of step d − 1 any more.
      __syncthreads();
      const int ahead = d + kStages - 1;
      if (ahead < nade.D) copy_stage(nade, ahead, width, stages + (ahead % kStages) * stage_floats);
      copy_async_commit();
    } else {
      if (p.groups > 1) __syncthreads();  // nobody reads the exchange of step d − 1 any more
    }

    const bool forced = d < p.G;
    if (!forced) {
      if (working && stale) {
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) h[i] = sigmoid(a[i]);
        stale = false;
      }
      conditional_logits(
          h, nade.b + static_cast<int64_t>(d) * nade.P, nade.P, p.groups, working, place, sums, stride,
          [&](int k, float (&value)[kPerLane]) {
            if constexpr (kStaged) {
              load_staged(stage + static_cast<int64_t>(k) * width, place, value);
            } else {
              load_row(nade.V + (static_cast<int64_t>(d) * nade.P + k) * nade.H, place, nade.H, nade.vector, value);
            }
          },
          p.temperature, nullptr, conditional);
    }
    if (!working) continue;

    int state;
    if (forced) {
      state = p.given[n * p.G + d];
      if (state >= nade.K) {  // refused by the Python layer where it can look; here it must only be harmless
        state = 0;
        total = not_a_number();
      }
    } else {
      if (d % 128 == 0 || d == p.G) {
        random = philox_block(seed, sample, static_cast<uint32_t>(d / 128 * 128 + 4 * place.lane));
      }
      const uint32_t word = (d & 2) == 0 ? ((d & 1) == 0 ? random.word[0] : random.word[1])
                                         : ((d & 1) == 0 ? random.word[2] : random.word[3]);
      const float u = uniform_from_word(__shfl_sync(kFullWarp, word, (d / 4) % kWarp));
      state = conditional.valid() ? conditional.draw(u) : 0;
      block_total += static_cast<double>(conditional.log_probability(state));
    }
    if (d % kBlockDims == kBlockDims - 1 || d == nade.D - 1) {
      total += block_total;
      block_total = 0.0;
    }

    if (d % kWarp == place.lane) kept_state = state;
    if (writes && (d % kWarp == kWarp - 1 || d == nade.D - 1)) {
      const int first = d / kWarp * kWarp;
      if (first + place.lane <= d) p.x[n * nade.D + first + place.lane] = static_cast<uint8_t>(kept_state);
    }

    if (state > 0) {
      float value[kPerLane];
      if constexpr (kStaged) {
        load_staged(stage + static_cast<int64_t>(nade.P + nade.row(state)) * width, place, value);
      } else {
        load_row(nade.W + (static_cast<int64_t>(d) * nade.R + nade.row(state)) * nade.H, place, nade.H, nade.vector,
                 value);
      }
      add_row(a, value, nade.scale(state));
      stale = true;
    }
  }
  if (writes && place.lane == 0) p.log_prob[n] = static_cast<float>(total);
}

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

}  // namespace pyar::cuda
