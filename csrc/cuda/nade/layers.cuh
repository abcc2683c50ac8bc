// NADE's added layers, f ← max(0, A f + a) from f = h on, shared by all dimensions, without a tensor of size N × D × H.
//
// Given states, the activations of h and of every layer exist for a few blocks of dimensions at a time, as matrices of
// rows: row (block · N + n) · kBlockDims + i is dimension i of a block for sample n, and rows beyond the last dimension
// have no weight anywhere. Layers, and their gradients, are products of such matrices; the conditionals and the
// gradients around them come from the kernels of forward.cuh and backward.cuh, with f in the place of h.
//
// The sum over a layer's inputs has one order, whatever the batch and the kernel: fused multiply-adds upwards over
// kInputsAPart inputs, then the parts upwards, then the bias.
#pragma once

#include "cuda/nade/step.cuh"

namespace pyar::cuda::nade {

constexpr int kInputsAPart = 32;
constexpr int kMostAddedLayers = 16;

// max(0, x); NaN stays NaN.
PYAR_DEVICE float rectify(float x) { return x < 0.0f ? 0.0f : x; }

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

}  // namespace pyar::cuda::nade
