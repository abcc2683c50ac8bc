// PixelLSTM's sampling loop (loop.cuh) in float: strips of 32 / q hidden units, q = 1, 2 or 4.
//
// The sum over inputs has one order, whatever the batch, the tile and the number of blocks: warp w and lane part s take
// the inputs k = (w + 8 j) q + s upwards, then the parts are added, then the warps upwards.
#pragma once

#include "cuda/lstm/loop.cuh"

namespace pyar::cuda::lstm {

// How the model is dealt out; the host's choice, a function of the model and the GPU, not of the batch.
struct LstmPlan {
  int H, K, layers;
  int q;         // parts of a warp's lanes, each with its own inputs
  int steps;     // ⌈H / q⌉: lane parts' inputs of one h, padded to a whole number
  int strips;    // ⌈H q / 32⌉ strips of 32 / q units
  int blocks;    // thread blocks a group
  bool on_chip;  // weights in shared memory

  PYAR_HOST_DEVICE int units() const { return kWarp / q; }
  PYAR_HOST_DEVICE int padded() const { return steps * q; }
  // Inputs of a layer, in whole h's: its own, and that of the layer below.
  PYAR_HOST_DEVICE int sources(int layer) const { return layer == 0 ? 1 : 2; }
  // float4's of packed weights: of a strip of one layer, and of all strips of the layers before this one.
  PYAR_HOST_DEVICE int64_t strip_size(int layer) const { return int64_t{kWarp} * steps * sources(layer); }
  PYAR_HOST_DEVICE int64_t layer_start(int layer) const {
    return layer == 0 ? 0 : (int64_t{2} * layer - 1) * kWarp * steps * strips;
  }
  PYAR_HOST_DEVICE int most_strips() const { return (strips + blocks - 1) / blocks; }
  // Floats of shared memory: all of a block's weights; one h of a tile; sums and conditionals.
  PYAR_HOST_DEVICE int64_t weight_floats() const {
    return on_chip ? 4 * int64_t{most_strips()} * (2 * layers - 1) * kWarp * steps : 0;
  }
  PYAR_HOST_DEVICE int64_t h_floats(int tile) const { return (int64_t{padded()} * tile + 3) / 4 * 4; }
  PYAR_HOST_DEVICE int64_t scratch_floats(int tile) const {
    const int64_t sums = int64_t{4} * kLstmWarps * tile * units();
    const int64_t conditionals = tile * Categorical::shared_floats(K);
    return sums > conditionals ? sums : conditionals;
  }
  PYAR_HOST_DEVICE int64_t shared_bytes(int tile) const {
    const int64_t totals = int64_t{8} * kMostSamples;
    const int64_t floats = weight_floats() + (layers == 1 ? 1 : 3) * h_floats(tile) + scratch_floats(tile) + 8;
    return totals + 4 * floats;
  }
};

struct LstmPackArguments {
  LstmTables tables;
  LstmPlan plan;
  const float* weight_ih[4];  // [4H, I], I = K or 1 in layer 0, H in the others
  const float* weight_hh[4];  // [4H, H]
  bool rounds;                // the weights to bfloat16
  float4* weights;  // of layer l from layer_start(l) on: [strips, sources · steps, 32]; gates i, f, g, o of one unit
};

// Each thread packs one float4 at a time: weights, then the tables.
static __global__ void __launch_bounds__(256) lstm_pack_kernel(const LstmPackArguments p) {
  const LstmPlan& plan = p.plan;
  const int H = plan.H;
  const int64_t num_weights = plan.layer_start(plan.layers);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < num_weights + p.tables.size();
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    if (i >= num_weights) {
      p.tables.pack(i - num_weights);
      continue;
    }
    int layer = 0;
    while (i >= plan.layer_start(layer + 1)) ++layer;
    const int64_t within = i - plan.layer_start(layer);
    const int64_t strip = within / plan.strip_size(layer);
    const int64_t step = within % plan.strip_size(layer) / kWarp;
    const int lane = static_cast<int>(within % kWarp);
    const int64_t unit = strip * plan.units() + lane % plan.units();
    // The layer below comes first, then the layer's own h.
    const bool below = layer > 0 && step < plan.steps;
    const int64_t k = step % plan.steps * plan.q + lane / plan.units();
    const float* const matrix = below ? p.weight_ih[layer] : p.weight_hh[layer];
    float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (unit < H && k < H) {
      const float* const row = matrix + unit * H + k;
      const int64_t gate = int64_t{H} * H;
      const auto stored = [&](float weight) {
        return p.rounds ? __uint_as_float(round_to_bfloat16(__float_as_uint(weight)) << 16) : weight;
      };
      value = make_float4(stored(row[0]), stored(row[gate]), stored(row[2 * gate]), stored(row[3 * gate]));
    }
    p.weights[i] = value;
  }
}

struct LstmSampleArguments {
  LstmLoop loop;
  LstmPlan plan;
  const float4* weights;  // packed, as above
};

// gates[g][s] += Σ_k W[g, k] h[k, s] over this warp's and lane part's inputs of one h.
template <int kTile, bool kOnChip>
PYAR_DEVICE void multiply(const float4* weights, const float* h, const LstmPlan& plan, float (&gates)[4][kTile]) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int part = lane / plan.units();
#pragma unroll 4
  for (int step = warp; step < plan.steps; step += kLstmWarps) {
    const float4* const from = weights + static_cast<int64_t>(step) * kWarp + lane;
    float4 w;
    if constexpr (kOnChip) {
      w = *from;
    } else {
      w = __ldg(from);
    }
    float value[kTile];
    load_tile(h + (step * plan.q + part) * kTile, value);
#pragma unroll
    for (int s = 0; s < kTile; ++s) {
      gates[0][s] = fmaf(w.x, value[s], gates[0][s]);
      gates[1][s] = fmaf(w.y, value[s], gates[1][s]);
      gates[2][s] = fmaf(w.z, value[s], gates[2][s]);
      gates[3][s] = fmaf(w.w, value[s], gates[3][s]);
    }
  }
}

// head_weight h + head_bias of a tile's samples into their conditionals' scratch, from h [H, kTile].
template <int kTile>
PYAR_DEVICE void head_logits(const LstmLoop& p, const float* h, float* scratch) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t conditional_floats = Categorical::shared_floats(p.K);
  for (int k = warp; k < p.K; k += kLstmWarps) {
    float sum[8] = {};
    for (int unit = lane; unit < p.H; unit += kWarp) {
      const float w = __ldg(p.head_weight + static_cast<int64_t>(k) * p.H + unit);
      float value[kTile];
      load_tile(h + unit * kTile, value);
#pragma unroll
      for (int s = 0; s < kTile; ++s) sum[s] = fmaf(w, value[s], sum[s]);
    }
    if constexpr (kTile == 1) {
      const float total = warp_sum(sum[0]);
      if (lane == 0) scratch[k] = total + __ldg(p.head_bias + k);
    } else {
      const float total = warp_sum_8(sum, lane);  // of sample lane / 4
      if (lane % 4 == 0 && lane / 4 < kTile) {
        scratch[lane / 4 * conditional_floats + k] = total + __ldg(p.head_bias + k);
      }
    }
  }
}

// Grid groups · blocks; tile i belongs to group i mod groups.
template <int kTile, bool kOnChip>
__global__ void __launch_bounds__(kLstmThreads, 1) lstm_sample_kernel(const LstmSampleArguments arguments) {
  const LstmLoop& p = arguments.loop;
  const LstmPlan& plan = arguments.plan;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp, lane = thread % kWarp;
  const int group = static_cast<int>(blockIdx.x) / p.blocks, rank = static_cast<int>(blockIdx.x) % p.blocks;
  const int H = plan.H, units = plan.units(), last = plan.layers - 1;

  // Shared memory, the widest alignment first.
  double* const totals = reinterpret_cast<double*>(dynamic_shared());  // [kMostSamples]
  float4* const chip = reinterpret_cast<float4*>(totals + kMostSamples);
  float* const top = reinterpret_cast<float*>(chip) + plan.weight_floats();  // [padded, kTile]: the last layer's h
  float* const below = top + plan.h_floats(kTile);                           // the layer below's, if there are several
  float* const own = below + (last > 0 ? plan.h_floats(kTile) : 0);          // a lower layer's own
  float* const scratch = own + (last > 0 ? plan.h_floats(kTile) : 0);
  int* const states = reinterpret_cast<int*>(scratch + plan.scratch_floats(kTile));  // [kTile]

  for (int64_t i = thread; i < (last > 0 ? 3 : 1) * plan.h_floats(kTile); i += kLstmThreads) top[i] = 0.0f;
  for (int i = thread; i < kMostSamples; i += kLstmThreads) totals[i] = 0.0;
  if constexpr (kOnChip) {
    // Layer by layer, this block's strips rank, rank + blocks, … one behind the other.
    float4* to = chip;
    for (int layer = 0; layer <= last; ++layer) {
      const int64_t size = plan.strip_size(layer);
      for (int strip = rank; strip < plan.strips; strip += p.blocks) {
        const float4* const from = arguments.weights + plan.layer_start(layer) + strip * size;
        for (int64_t i = thread; i < size; i += kLstmThreads) to[i] = __ldg(from + i);
        to += size;
      }
    }
  }
  __syncthreads();

  const auto receive_h = [&](int layer, int d, int64_t tile, float* h) {
    receive(p.words_of(layer, d, tile, kTile), H * kTile, static_cast<uint32_t>(d) + 1,
            [h](int i, float value) { h[i] = value; });
  };

  for (int d = 0; d <= p.D; ++d) {
    int slot = 0;  // of the tile within the group
    for (int64_t tile = group; tile < p.tiles; tile += p.groups, ++slot) {
      if (d > 0) {
        receive_h(last, d - 1, tile, top);
        __syncthreads();
        draw_tile<kTile>(p, d - 1, tile * kTile, scratch, states, totals + slot * kTile, rank == 0,
                         [&] { head_logits<kTile>(p, top, scratch); });
      }
      if (d == p.D) continue;

      const float4* chip_layer = chip;
      for (int layer = 0; layer <= last; ++layer) {
        // What this layer reads: the layer below at this step, its own h of the last step.
        if (layer > 0) receive_h(layer - 1, d, tile, below);
        if (layer < last && d > 0) receive_h(layer, d - 1, tile, own);
        if (last > 0) __syncthreads();
        const float* const before = layer == last ? top : own;

        for (int strip = rank; strip < plan.strips; strip += p.blocks) {
          const float4* const weights =
              kOnChip ? chip_layer : arguments.weights + plan.layer_start(layer) + strip * plan.strip_size(layer);
          if constexpr (kOnChip) chip_layer += plan.strip_size(layer);
          // This thread's share of the cells: unit thread / kTile of the strip, sample thread % kTile of the tile.
          const int cell_unit = thread / kTile, cell_sample = thread % kTile;
          const int64_t unit = strip * units + cell_unit;
          const bool has_cell = cell_unit < units && unit < H;
          float* const cell = p.cells_of(layer, tile, kTile) + unit * kTile + cell_sample;
          float c = has_cell && d > 0 ? *cell : 0.0f;

          float gates[4][kTile] = {};
          if (layer > 0) multiply<kTile, kOnChip>(weights, below, plan, gates);
          if (d > 0) {
            multiply<kTile, kOnChip>(weights + (layer > 0 ? int64_t{kWarp} * plan.steps : 0), before, plan, gates);
          }
#pragma unroll
          for (int s = 0; s < kTile; ++s) {
#pragma unroll
            for (int g = 0; g < 4; ++g) {
              // The lanes of the other parts have the same unit.
              if (plan.q >= 4) gates[g][s] += __shfl_xor_sync(kFullWarp, gates[g][s], 8);
              if (plan.q >= 2) gates[g][s] += __shfl_xor_sync(kFullWarp, gates[g][s], 16);
            }
          }
          float4* const sums = reinterpret_cast<float4*>(scratch);  // [warps, units, kTile]
          if (lane < units) {
#pragma unroll
            for (int s = 0; s < kTile; ++s) {
              sums[(warp * units + lane) * kTile + s] = make_float4(gates[0][s], gates[1][s], gates[2][s], gates[3][s]);
            }
          }
          __syncthreads();
          if (has_cell) {
            float4 sum = sums[cell_unit * kTile + cell_sample];
            for (int other = 1; other < kLstmWarps; ++other) {
              sum = add(sum, sums[(other * units + cell_unit) * kTile + cell_sample]);
            }
            sum = add(sum, layer == 0 ? __ldg(p.inputs + (d > 0 ? states[cell_sample] + 1 : 0) * p.width + unit)
                                      : __ldg(p.biases + layer * p.width + unit));
            update_cell(sum, c, p.words_of(layer, d, tile, kTile) + unit * kTile + cell_sample, d);
            *cell = c;
          }
          __syncthreads();  // the sums have been read, and so have h and the states
        }
      }
    }
  }
  if (rank == 0) report_totals<kTile>(p, group, totals);
}

}  // namespace pyar::cuda::lstm
