// NADE's gradients from those of the logits, g[n, d, k] = ∂L/∂logits, without a tensor of size N × D × H and without
// atomics: every sum has one owner and one order, so the same inputs give the same bits.
//
//   ∂L/∂b[d, k] = Σ_n g[n, d, k]                   ∂L/∂V[d, k] = Σ_n g[n, d, k] h[n, d]
//   u[n, d] = (Σ_k g[n, d, k] V[d, k]) h (1 − h)   = ∂L/∂a[n, d] through the conditional of d alone
//   ∂L/∂W[d, k] = Σ_{n: x[n, d] = k} Σ_{e>d} u[n, e]          ∂L/∂c = Σ_n Σ_d u[n, d]
//
// The dimensions are cut into blocks of kBlockDims. nade_block_gradient_kernel recomputes h from a at the block's start
// and makes all of V's and b's gradient, the part of W's with e in the same block, and the block's Σ_d u in the place
// of the start value. nade_later_blocks_kernel sums those over the later blocks, nade_input_gradient_kernel adds them
// to W's gradient, nade_sum_samples_kernel makes c's. Where added layers made f of h (kFeatures),
// nade_block_gradient_kernel takes f in the place of h and hands on the gradient of what their last one rectified; from
// u, once that has come back through the layers, nade_input_block_kernel makes the rest.
#pragma once

#include "cuda/nade/step.cuh"

namespace pyar::cuda::nade {

constexpr int kTile = 16;          // samples at a time
constexpr int kBackwardWarps = 8;  // each has two samples of the tile, each lane one hidden unit
constexpr int kOutputsAtATime = 8;
constexpr int kSamplesEach = kTile / kBackwardWarps;

struct BlockGradientArguments {
  NadeParameters nade;
  const uint8_t* x;       // [N, D]
  const float* gradient;  // [N, D, P]: g
  float* starts;          // [blocks, N, H]: in a at the block's start, out Σ_{d in block} u
  const float* features;  // [blocks, N, kBlockDims, H]: f of added layers, from first_block on
  float* grad_features;   // [blocks, N, kBlockDims, H]: ∂L/∂(what the last layer rectified)
  float* grad_W;          // [D, R, H], added to
  float* grad_V;          // [D, P, H], added to, or set if fresh
  float* grad_b;          // [D, P], likewise
  int64_t N;
  int first_block;
  bool fresh;
};

// What one step of a tile keeps in shared memory.
struct BackwardShared {
  float h[kBlockDims][kTile][kWarp];                   // h, then Σ_{e>d in block} u
  float gradient[kBlockDims][kOutputsAtATime][kTile];  // g
  uint8_t x[kTile][kBlockDims];
};

// Adds Σ_{n: x[n] = k} value[n][lane] to row k − 1 of grad_row [R, H] for every state k > 0, or Σ_n x[n]/(K−1) value to
// the one row of scalar input. Lane n brings the state of sample n (0 for those beyond); called by one warp.
PYAR_DEVICE void add_by_state(const NadeParameters& nade, int state, const float (*value)[kWarp], int lane, int h,
                              float* grad_row) {
  unsigned remaining = __ballot_sync(kFullWarp, state > 0 && state < nade.K);
  if (nade.scalar) {
    float sum = 0.0f;
    const bool any = remaining != 0;
    while (remaining != 0) {
      const int n = __ffs(static_cast<int>(remaining)) - 1;
      remaining &= remaining - 1;
      sum = fmaf(nade.scale(__shfl_sync(kFullWarp, state, n)), value[n][lane], sum);
    }
    if (any && h < nade.H) grad_row[h] += sum;
    return;
  }
  const unsigned alike = __match_any_sync(kFullWarp, state);
  while (remaining != 0) {
    const int first = __ffs(static_cast<int>(remaining)) - 1;
    unsigned members = __shfl_sync(kFullWarp, alike, first);
    const int k = __shfl_sync(kFullWarp, state, first);
    remaining &= ~members;
    float sum = 0.0f;
    while (members != 0) {
      sum += value[__ffs(static_cast<int>(members)) - 1][lane];
      members &= members - 1;
    }
    if (h < nade.H) grad_row[static_cast<int64_t>(k - 1) * nade.H + h] += sum;
  }
}

// Grid (⌈H / 32⌉, blocks of dimensions): a thread block has 32 hidden units and 16 dimensions, and all samples in turn.
template <bool kFeatures>
__global__ void __launch_bounds__(kBackwardWarps* kWarp, 2) nade_block_gradient_kernel(const BlockGradientArguments p) {
  const NadeParameters& nade = p.nade;
  BackwardShared& shared = *reinterpret_cast<BackwardShared*>(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp, lane = thread % kWarp;
  const int h = static_cast<int>(blockIdx.x) * kWarp + lane;
  const bool real = h < nade.H;
  const int block = (kFeatures ? p.first_block : 0) + static_cast<int>(blockIdx.y);
  const int first_d = block * kBlockDims;
  // Of sample n and the block's first dimension, in features and grad_features.
  const auto row_of = [&](int64_t n) { return (static_cast<int64_t>(blockIdx.y) * p.N + n) * kBlockDims * nade.H + h; };
  const int dims = nade.D - first_d < kBlockDims ? nade.D - first_d : kBlockDims;

  for (int64_t first_n = 0; first_n < p.N; first_n += kTile) {
    const bool set = p.fresh && first_n == 0;
    __syncthreads();  // the previous tile is done with
    {
      const int64_t n = first_n + thread / kBlockDims;
      const int d = thread % kBlockDims;
      shared.x[thread / kBlockDims][d] = n < p.N && d < dims ? p.x[n * nade.D + first_d + d] : 0;
    }
    __syncthreads();

    // h, by the forward kernels' additions. Only this warp reads or writes its samples' part until the next barrier.
#pragma unroll
    for (int r = 0; r < kSamplesEach; ++r) {
      const int sample = warp * kSamplesEach + r;
      const int64_t n = first_n + sample;
      if constexpr (kFeatures) {
#pragma unroll
        for (int d = 0; d < kBlockDims; ++d) {
          shared.h[d][sample][lane] = n < p.N && real ? p.features[row_of(n) + static_cast<int64_t>(d) * nade.H] : 0.0f;
        }
      } else {
        float value[kBlockDims];
#pragma unroll
        for (int d = 0; d < kBlockDims; ++d) {
          const int state = shared.x[sample][d];
          value[d] = 0.0f;
          if (state > 0 && state < nade.K && real) {
            value[d] = __ldg(nade.W + (static_cast<int64_t>(first_d + d) * nade.R + nade.row(state)) * nade.H + h);
          }
        }
        float a = n < p.N && real ? p.starts[(static_cast<int64_t>(block) * p.N + n) * nade.H + h] : 0.0f;
        float hidden = sigmoid(a);
#pragma unroll
        for (int d = 0; d < kBlockDims; ++d) {
          shared.h[d][sample][lane] = hidden;
          const int state = shared.x[sample][d];
          if (state > 0 && state < nade.K) {
            a = fmaf(nade.scale(state), value[d], a);
            hidden = sigmoid(a);
          }
        }
      }
    }

    float u[kBlockDims][kSamplesEach] = {};
    for (int first_k = 0; first_k < nade.P; first_k += kOutputsAtATime) {
      const int count = nade.P - first_k < kOutputsAtATime ? nade.P - first_k : kOutputsAtATime;
      for (int i = thread; i < kTile * kBlockDims * count; i += kBackwardWarps * kWarp) {
        const int k = i % count;
        const int d = i / count % kBlockDims;
        const int sample = i / count / kBlockDims;
        const int64_t n = first_n + sample;
        shared.gradient[d][k][sample] =
            n < p.N && d < dims ? p.gradient[(n * nade.D + first_d + d) * nade.P + first_k + k] : 0.0f;
      }
      __syncthreads();

      for (int k = 0; k < count; ++k) {
        float v[kBlockDims];
#pragma unroll
        for (int d = 0; d < kBlockDims; ++d) {
          v[d] = d < dims && real
                     ? __ldg(nade.V + (static_cast<int64_t>(first_d + d) * nade.P + first_k + k) * nade.H + h)
                     : 0.0f;
        }
#pragma unroll
        for (int d = 0; d < kBlockDims; ++d) {
#pragma unroll
          for (int r = 0; r < kSamplesEach; ++r) {
            u[d][r] = fmaf(shared.gradient[d][k][warp * kSamplesEach + r], v[d], u[d][r]);
          }
        }
      }

      for (int d = warp; d < dims; d += kBackwardWarps) {
        float sum[kOutputsAtATime] = {};
#pragma unroll 1  // the registers are full with u
        for (int sample = 0; sample < kTile; sample += 4) {
          float hidden[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) hidden[i] = shared.h[d][sample + i][lane];
#pragma unroll
          for (int k = 0; k < kOutputsAtATime; ++k) {
            if (k < count) {
              const float4 g = *reinterpret_cast<const float4*>(&shared.gradient[d][k][sample]);
              sum[k] = fmaf(g.x, hidden[0], sum[k]);
              sum[k] = fmaf(g.y, hidden[1], sum[k]);
              sum[k] = fmaf(g.z, hidden[2], sum[k]);
              sum[k] = fmaf(g.w, hidden[3], sum[k]);
            }
          }
        }
        if (real) {
          float* const to = p.grad_V + (static_cast<int64_t>(first_d + d) * nade.P + first_k) * nade.H + h;
#pragma unroll
          for (int k = 0; k < kOutputsAtATime; ++k) {
            if (k < count)
              to[static_cast<int64_t>(k) * nade.H] = set ? sum[k] : to[static_cast<int64_t>(k) * nade.H] + sum[k];
          }
        }
      }

      if (blockIdx.x == 0 && thread < dims * count) {
        const int k = thread % count, d = thread / count;
        float sum = 0.0f;
        for (int sample = 0; sample < kTile; ++sample) sum += shared.gradient[d][k][sample];
        float* const to = p.grad_b + static_cast<int64_t>(first_d + d) * nade.P + first_k + k;
        *to = set ? sum : *to + sum;
      }
      __syncthreads();  // the gradients and h have been read
    }

    if constexpr (kFeatures) {
#pragma unroll
      for (int r = 0; r < kSamplesEach; ++r) {
        const int sample = warp * kSamplesEach + r;
        const int64_t n = first_n + sample;
#pragma unroll
        for (int d = 0; d < kBlockDims; ++d) {
          if (n < p.N && real) {
            p.grad_features[row_of(n) + static_cast<int64_t>(d) * nade.H] =
                shared.h[d][sample][lane] <= 0.0f ? 0.0f : u[d][r];
          }
        }
      }
    } else {
      // Σ_{e>d in block} u in the place of h, and the whole block's sum.
#pragma unroll
      for (int r = 0; r < kSamplesEach; ++r) {
        const int sample = warp * kSamplesEach + r;
        const int64_t n = first_n + sample;
        float later = 0.0f;
#pragma unroll
        for (int d = kBlockDims - 1; d >= 0; --d) {
          const float derivative = sigmoid_derivative(shared.h[d][sample][lane]);
          shared.h[d][sample][lane] = later;
          later = fmaf(u[d][r], derivative, later);
        }
        if (n < p.N && real) p.starts[(static_cast<int64_t>(block) * p.N + n) * nade.H + h] = later;
      }
      __syncthreads();

      for (int d = warp; d < dims; d += kBackwardWarps) {
        const int state = lane < kTile ? shared.x[lane % kTile][d] : 0;
        add_by_state(nade, state, shared.h[d], lane, h, p.grad_W + static_cast<int64_t>(first_d + d) * nade.R * nade.H);
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

// sums[block, n, h] ← Σ_{later blocks} sums[·, n, h], and total[n, h] ← Σ_{all blocks}. One thread a (n, h);
// grid (⌈H / blockDim⌉, N).
static __global__ void __launch_bounds__(128)
    nade_later_blocks_kernel(float* sums, float* total, int64_t blocks, int64_t N, int H) {
  const int h = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (h >= H) return;
  float* const column = sums + static_cast<int64_t>(blockIdx.y) * H + h;
  const int64_t stride = N * H;
  constexpr int kAtATime = 8;
  float later = 0.0f;
  for (int64_t end = blocks; end > 0; end -= kAtATime) {
    float value[kAtATime];
#pragma unroll
    for (int i = 0; i < kAtATime; ++i) value[i] = end - 1 - i >= 0 ? column[(end - 1 - i) * stride] : 0.0f;
#pragma unroll
    for (int i = 0; i < kAtATime; ++i) {
      if (end - 1 - i >= 0) column[(end - 1 - i) * stride] = later;
      later += value[i];
    }
  }
  total[static_cast<int64_t>(blockIdx.y) * H + h] = later;
}

// grad_W[d, k] += Σ_{n: x[n, d] = k} later[block of d, n]. Grid (⌈H / 32⌉, blocks − 1): the last block has none later.
static __global__ void __launch_bounds__(kBackwardWarps* kWarp)
    nade_input_gradient_kernel(const NadeParameters nade, const uint8_t* x, const float* later, float* grad_W,
                               int64_t N) {
  float (*const value)[kWarp] = reinterpret_cast<float (*)[kWarp]>(dynamic_shared());  // [32 samples][32 hidden units]
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int h = static_cast<int>(blockIdx.x) * kWarp + lane;
  const int64_t block = blockIdx.y;
  for (int64_t first_n = 0; first_n < N; first_n += kWarp) {
    __syncthreads();  // the previous tile is done with
    for (int sample = warp; sample < kWarp; sample += kBackwardWarps) {
      const int64_t n = first_n + sample;
      value[sample][lane] = n < N && h < nade.H ? __ldg(later + (block * N + n) * nade.H + h) : 0.0f;
    }
    __syncthreads();
    for (int i = warp; i < kBlockDims; i += kBackwardWarps) {
      const int64_t d = block * kBlockDims + i;  // < D, as a later block exists
      const int state = first_n + lane < N ? x[(first_n + lane) * nade.D + d] : 0;
      add_by_state(nade, state, value, lane, h, grad_W + d * nade.R * nade.H);
    }
  }
}

// sum[h] ← Σ_n value[n, h], or added to if not fresh. Grid ⌈H / 32⌉.
static __global__ void __launch_bounds__(kBackwardWarps* kWarp)
    nade_sum_samples_kernel(const float* value, int64_t N, int H, float* sum, bool fresh) {
  float (*const part)[kWarp] = reinterpret_cast<float (*)[kWarp]>(dynamic_shared());  // [warps][32 hidden units]
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int h = static_cast<int>(blockIdx.x) * kWarp + lane;
  float mine = 0.0f;
  if (h < H) {
    for (int64_t n = warp; n < N; n += kBackwardWarps) mine += value[n * H + h];
  }
  part[warp][lane] = mine;
  __syncthreads();
  if (warp == 0 && h < H) {
    float total = part[0][lane];
    for (int other = 1; other < kBackwardWarps; ++other) total += part[other][lane];
    sum[h] = fresh ? total : sum[h] + total;
  }
}

// loss ← −1/N Σ_n log_prob[n], in double. One thread block of 256.
static __global__ void __launch_bounds__(256) nade_mean_kernel(const double* log_prob, int64_t N, float* loss) {
  double* const part = reinterpret_cast<double*>(dynamic_shared());  // [256]
  const int thread = static_cast<int>(threadIdx.x);
  double sum = 0.0;
  for (int64_t n = thread; n < N; n += 256) sum += log_prob[n];
  part[thread] = sum;
  for (int half = 128; half >= 1; half /= 2) {
    __syncthreads();
    if (thread < half) part[thread] += part[thread + half];
  }
  if (thread == 0) *loss = N == 0 ? not_a_number() : static_cast<float>(-part[0] / static_cast<double>(N));
}

}  // namespace pyar::cuda::nade
