// One step of NADE in the hands of a warp, as sampling and the passes over given states share it.
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

#include "cuda/conditional.cuh"
#include "cuda/device.cuh"

namespace pyar::cuda::nade {

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

}  // namespace pyar::cuda::nade
