// NADE's added layers, f ← max(0, A f + a) from f = h on, shared by all dimensions, without a tensor of size N × D × H.
//
// Given states, the activations of h and of every layer exist for a few blocks of dimensions at a time, as matrices of
// rows: row (block · N + n) · kBlockDims + i is dimension i of a block for sample n, and rows beyond the last dimension
// have no weight anywhere. Layers, and their gradients, are products of such matrices; the conditionals and the
// gradients around them come from the kernels of forward.cuh and backward.cuh, with f in the place of h.
// Sampling keeps the activations of a few samples in shared memory.
//
// The sum over a layer's inputs has one order, whatever the batch and the kernel: fused multiply-adds upwards over
// kInputsAPart inputs, then the parts upwards, then the bias.
#pragma once

#include "cuda/nade/backward.cuh"

namespace pyar::cuda {

constexpr int kInputsAPart = 32;
constexpr int kMostAddedLayers = 16;

// max(0, x); NaN stays NaN.
PYAR_DEVICE float rectify(float x) { return x < 0.0f ? 0.0f : x; }

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

// A matrix in memory, or its transpose: element (i, k) is data[i · row + k · column], one of the two strides 1.
struct Strided {
  const float* data;
  int64_t row, column;
};

// out[i, j] = max(0, sum + bias[j])
struct StoreLayer {
  const float* bias;
  float* out;  // [I, J]
  PYAR_DEVICE void operator()(int64_t i, int64_t j, int64_t J, float sum) const {
    out[i * J + j] = rectify(sum + __ldg(bias + j));
  }
};

// out[i, j] = sum · the derivative of what made activation[i, j]: σ or max(0, ·)
struct StoreInputGradient {
  const float* activation;  // [I, J]
  float* out;               // [I, J]
  bool is_sigmoid;
  PYAR_DEVICE void operator()(int64_t i, int64_t j, int64_t J, float sum) const {
    const float f = activation[i * J + j];
    out[i * J + j] = is_sigmoid ? sum * sigmoid_derivative(f) : f <= 0.0f ? 0.0f : sum;
  }
};

// out[i, j] += sum, or set if fresh
struct StoreWeightGradient {
  float* out;  // [I, J]
  bool fresh;
  PYAR_DEVICE void operator()(int64_t i, int64_t j, int64_t J, float sum) const {
    out[i * J + j] = fresh ? sum : out[i * J + j] + sum;
  }
};

constexpr int kPanel = 64;        // rows of each matrix a thread block has
constexpr int kPanelInputs = 16;  // elements of these at a time
constexpr int kPanelRow = kPanel + 4;
constexpr int kProductThreads = 256;

// panel[k][i] ← matrix(first_i + i, first_k + k), zeros beyond I and K.
PYAR_DEVICE void load_panel(const Strided& matrix, int64_t first_i, int64_t I, int64_t first_k, int64_t K,
                            float (*panel)[kPanelRow]) {
#pragma unroll
  for (int at = static_cast<int>(threadIdx.x); at < kPanel * kPanelInputs; at += kProductThreads) {
    // Neighbouring threads read neighbouring elements.
    const int k = matrix.column == 1 ? at % kPanelInputs : at / kPanel;
    const int i = matrix.column == 1 ? at / kPanelInputs : at % kPanel;
    const bool inside = first_i + i < I && first_k + k < K;
    panel[k][i] = inside ? __ldg(matrix.data + (first_i + i) * matrix.row + (first_k + k) * matrix.column) : 0.0f;
  }
}

// store(i, j, J, Σ_k X(i, k) Y(j, k)) for all i < I, j < J. Grid (⌈I / 64⌉, ⌈J / 64⌉); each thread has 4 × 4 sums.
template <typename Store>
__global__ void __launch_bounds__(kProductThreads, 2)
    nade_product_kernel(const Strided X, const Strided Y, int64_t I, int64_t J, int64_t K, const Store store) {
  float (*const panel_x)[kPanelRow] = reinterpret_cast<float (*)[kPanelRow]>(dynamic_shared());  // [kPanelInputs]
  float (*const panel_y)[kPanelRow] = panel_x + kPanelInputs;
  const int64_t first_i = int64_t{blockIdx.x} * kPanel, first_j = int64_t{blockIdx.y} * kPanel;
  const int thread_i = static_cast<int>(threadIdx.x) / 16 * 4, thread_j = static_cast<int>(threadIdx.x) % 16 * 4;
  float sum[4][4] = {}, part[4][4] = {};
  for (int64_t first_k = 0; first_k < K; first_k += kPanelInputs) {
    __syncthreads();  // the previous panels have been read
    load_panel(X, first_i, I, first_k, K, panel_x);
    load_panel(Y, first_j, J, first_k, K, panel_y);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kPanelInputs; ++k) {
      const float4 x = *reinterpret_cast<const float4*>(&panel_x[k][thread_i]);
      const float4 y = *reinterpret_cast<const float4*>(&panel_y[k][thread_j]);
      const float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) part[i][j] = fmaf(xs[i], ys[j], part[i][j]);
      }
    }
    if ((first_k + kPanelInputs) % kInputsAPart == 0 || first_k + kPanelInputs >= K) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += part[i][j], part[i][j] = 0.0f;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (first_i + thread_i + i < I && first_j + thread_j + j < J) {
        store(first_i + thread_i + i, first_j + thread_j + j, J, sum[i][j]);
      }
    }
  }
}

// From u = ∂L/∂a of the rows through the conditional of each alone: W's gradient for later dimensions of the same
// block, and the block's Σ_d u in the place of its start value. Grid (⌈H / 32⌉, blocks), as nade_block_gradient_kernel.
struct InputBlockArguments {
  NadeParameters nade;
  const uint8_t* x;  // [N, D]
  const float* u;    // [blocks, N, kBlockDims, H], from first_block on
  float* sums;       // [blocks, N, H], from first_block on: Σ_{d in block} u
  float* grad_W;     // [D, R, H], added to
  int64_t N;
  int first_block;
};

static __global__ void __launch_bounds__(kBackwardWarps* kWarp) nade_input_block_kernel(const InputBlockArguments p) {
  const NadeParameters& nade = p.nade;
  float (*const later)[kTile][kWarp] = reinterpret_cast<float (*)[kTile][kWarp]>(dynamic_shared());  // [kBlockDims]
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int h = static_cast<int>(blockIdx.x) * kWarp + lane;
  const int64_t block = blockIdx.y;
  const int64_t first_d = (p.first_block + block) * kBlockDims;
  for (int64_t first_n = 0; first_n < p.N; first_n += kTile) {
    __syncthreads();  // the previous tile is done with
    for (int sample = warp; sample < kTile; sample += kBackwardWarps) {
      const int64_t n = first_n + sample;
      const bool real = n < p.N && h < nade.H;
      float sum = 0.0f;
#pragma unroll
      for (int i = kBlockDims - 1; i >= 0; --i) {
        later[i][sample][lane] = sum;
        if (real) sum += p.u[((block * p.N + n) * kBlockDims + i) * nade.H + h];
      }
      if (real) p.sums[(block * p.N + n) * nade.H + h] = sum;
    }
    __syncthreads();
    for (int i = warp; i < kBlockDims; i += kBackwardWarps) {
      const int64_t d = first_d + i, n = first_n + lane;
      const int state = lane < kTile && n < p.N && d < nade.D ? p.x[n * nade.D + d] : 0;
      add_by_state(nade, state, later[i], lane, h, p.grad_W + d * nade.R * nade.H);
    }
  }
}

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

}  // namespace pyar::cuda
