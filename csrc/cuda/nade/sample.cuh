// NADE's sampling without added layers: all D steps of a sample in one launch, by the step of step.cuh.
#pragma once

#include "common/philox.h"
#include "cuda/nade/step.cuh"

namespace pyar::cuda::nade {

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

}  // namespace pyar::cuda::nade
