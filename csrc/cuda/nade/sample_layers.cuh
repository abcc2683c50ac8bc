// NADE's sampling with added layers: all D steps of a few samples in one launch, activations in shared memory, the sums
// in the order that forward.cuh and layers.cuh have.
#pragma once

#include "common/philox.h"
#include "cuda/nade/layers.cuh"

namespace pyar::cuda::nade {

// to [columns, rows] ← from [rows, columns]. Each thread copies one element at a time.
static __global__ void __launch_bounds__(256)
    nade_transpose_kernel(const float* from, int64_t rows, int64_t columns, float* to) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * columns;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    to[i] = from[i % rows * columns + i / rows];
  }
}

constexpr int kLayersWarps = 16;
constexpr int kLayersThreads = kLayersWarps * kWarp;

struct AddedLayer {
  const float* weight;  // [inputs, outputs]: A, transposed
  const float* bias;    // [outputs]
  int inputs, outputs;
};

struct LayersSampleArguments {
  NadeParameters nade;   // V [D, P, F]
  const int64_t* seed;   // []
  const uint8_t* given;  // [N, G]
  uint8_t* x;            // [N, D]
  float* log_prob;       // [N], of the drawn part
  int64_t N;
  int64_t first_index;
  int G;
  float temperature;
  int F;         // outputs of the last layer
  int per_lane;  // as the teacher kernel adds over F: elements a lane, and
  int groups;    // warps a unit
  int widest;    // of H and the layers' outputs
  int num_layers;
  AddedLayer layers[kMostAddedLayers];
};

// Shared memory of a thread block with so many samples, in bytes: a, two activations, conditionals, states.
template <typename Conditional>
PYAR_HOST_DEVICE int64_t layers_sample_bytes(int H, int widest, int P, int samples) {
  const int64_t conditional = Conditional::shared_floats(P) > P ? Conditional::shared_floats(P) : P;
  return 4 * samples * (int64_t{H} + 2 * int64_t{widest} + conditional + 1);
}

// max(0, A f + a) of a tile: f [inputs, kSamples] → out [outputs, kSamples]. One thread an output.
template <int kSamples>
PYAR_DEVICE void apply_layer(const AddedLayer& layer, const float* f, float* out) {
  for (int m = static_cast<int>(threadIdx.x); m < layer.outputs; m += kLayersThreads) {
    float sum[kSamples] = {};
    for (int first = 0; first < layer.inputs; first += kInputsAPart) {
      const int end = layer.inputs - first < kInputsAPart ? layer.inputs : first + kInputsAPart;
      float part[kSamples] = {};
#pragma unroll 8
      for (int k = first; k < end; ++k) {
        const float w = __ldg(layer.weight + static_cast<int64_t>(k) * layer.outputs + m);
        float value[kSamples];
        load_tile(f + k * kSamples, value);
#pragma unroll
        for (int s = 0; s < kSamples; ++s) part[s] = fmaf(value[s], w, part[s]);
      }
#pragma unroll
      for (int s = 0; s < kSamples; ++s) sum[s] += part[s];
    }
#pragma unroll
    for (int s = 0; s < kSamples; ++s) out[m * kSamples + s] = rectify(sum[s] + __ldg(layer.bias + m));
  }
}

// V_k f of one sample, f [F, stride], in the order of the teacher kernel. Collective over the warp.
PYAR_DEVICE float output_sum(const float* row, const float* f, int stride, const LayersSampleArguments& p, int lane) {
  float total = 0.0f;
  for (int group = 0; group < p.groups; ++group) {
    const int first = group * kWarp * p.per_lane + 4 * lane;
    float sum = 0.0f;
    for (int j = 0; j < p.per_lane; ++j) {
      const int i = first + j / 4 * 4 * kWarp + j % 4;
      if (i < p.F) sum = fmaf(__ldg(row + i), f[static_cast<int64_t>(i) * stride], sum);
    }
    sum = warp_sum(sum);
    total = group == 0 ? sum : total + sum;
  }
  return total;
}

// Draws kSamples · gridDim.x samples, all D steps.
template <typename Conditional, int kSamples>
__global__ void __launch_bounds__(kLayersThreads, 1) nade_sample_layers_kernel(const LayersSampleArguments p) {
  const NadeParameters& nade = p.nade;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int64_t conditional_floats =
      Conditional::shared_floats(nade.P) > nade.P ? Conditional::shared_floats(nade.P) : nade.P;
  float* const a = reinterpret_cast<float*>(dynamic_shared());  // [H, kSamples]
  float* const front = a + int64_t{nade.H} * kSamples;          // [widest, kSamples]
  float* const back = front + int64_t{p.widest} * kSamples;     // [widest, kSamples]
  float* const conditionals = back + int64_t{p.widest} * kSamples;
  int* const states = reinterpret_cast<int*>(conditionals + kSamples * conditional_floats);  // [kSamples]

  // The first warps have a sample each to draw; the last block's surplus ones repeat the last sample and write nothing.
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kSamples + warp;
  const bool writes = warp < kSamples && index < p.N && lane == 0;
  const int64_t n = index < p.N ? index : p.N - 1;
  double total = 0.0, block_total = 0.0;

  for (int i = thread; i < nade.H * kSamples; i += kLayersThreads) a[i] = __ldg(nade.c + i / kSamples);
  for (int d = 0; d < nade.D; ++d) {
    const bool forced = d < p.G;
    if (!forced) {
      // The thread that reads a[i] here has written it.
      for (int i = thread; i < nade.H * kSamples; i += kLayersThreads) front[i] = sigmoid(a[i]);
      __syncthreads();
      for (int layer = 0; layer < p.num_layers; ++layer) {
        apply_layer<kSamples>(p.layers[layer], layer % 2 == 0 ? front : back, layer % 2 == 0 ? back : front);
        __syncthreads();
      }
      const float* const f = p.num_layers % 2 == 0 ? front : back;
      for (int job = warp; job < nade.P * kSamples; job += kLayersWarps) {
        const int k = job / kSamples, s = job % kSamples;
        const int64_t output = static_cast<int64_t>(d) * nade.P + k;
        const float sum = output_sum(nade.V + output * p.F, f + s, kSamples, p, lane);
        if (lane == 0) conditionals[s * conditional_floats + k] = sum + __ldg(nade.b + output);
      }
      __syncthreads();
    }
    if (warp < kSamples) {
      int state;
      if (forced) {
        state = p.given[n * p.G + d];
        if (state >= nade.K) {  // refused by the Python layer where it can look; here it must only be harmless
          state = 0;
          total = not_a_number();
        }
      } else {
        float* const logits = conditionals + warp * conditional_floats;
        Conditional conditional(logits, nade.P);
        if constexpr (std::is_same_v<Conditional, Bernoulli>) {
          conditional.set(logits[0], p.temperature);
        } else {
          conditional.set(p.temperature);
        }
        const float u = philox_uniform(static_cast<uint64_t>(*p.seed), static_cast<uint64_t>(p.first_index + n),
                                       static_cast<uint32_t>(d));
        state = conditional.valid() ? conditional.draw(u) : 0;
        block_total += static_cast<double>(conditional.log_probability(state));
      }
      if (d % kBlockDims == kBlockDims - 1 || d == nade.D - 1) {
        total += block_total;
        block_total = 0.0;
      }
      if (lane == 0) states[warp] = state;
      if (writes) p.x[n * nade.D + d] = static_cast<uint8_t>(state);
    }
    __syncthreads();
    for (int i = thread; i < nade.H * kSamples; i += kLayersThreads) {
      const int state = states[i % kSamples];
      if (state > 0) {
        const float* const row = nade.W + (static_cast<int64_t>(d) * nade.R + nade.row(state)) * nade.H;
        a[i] = fmaf(nade.scale(state), __ldg(row + i / kSamples), a[i]);
      }
    }
    __syncthreads();  // the states have been read
  }
  if (writes) p.log_prob[n] = static_cast<float>(total);
}

}  // namespace pyar::cuda::nade
