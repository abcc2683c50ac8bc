// PixelLSTM's whole sampling loop in one launch.
//
//   (i, f, g, o) = W_ih y + b_ih + W_hh h + b_hh     c ← σ(f) c + σ(i) tanh(g)     h ← σ(o) tanh(c)
//   p(x_d) = softmax(head_weight h + head_bias),     y of the next step: x_d
//
// A *group* of thread blocks carries tiles of samples through all steps. The hidden units are dealt out in strips of
// 32 / q (q = 1, 2 or 4), and every thread block of a group has some strips of every layer, with their weights in
// shared memory if they fit (kOnChip), else read from the L2 cache. After each layer of each step the blocks tell each
// other their part of h through global memory, one 64-bit word a value: the value and the step that it belongs to.
// Reader and writer need no fence, since the word is written and read as a whole, and a reader waits until the word of
// the step that it wants is there. Every block computes the logits for itself and draws from the same counter.
//
// Words are kept for two steps. A block writes step t + 2 only after it has read step t + 1 of all blocks, and each of
// these wrote that only after it had read step t of all: so nobody still waits for the word that is overwritten. All
// blocks of a group must be resident at once, which the cooperative launch makes sure of.
//
// The sum over inputs has one order, whatever the batch, the tile and the number of blocks: warp w and lane part s take
// the inputs k = (w + 8 j) q + s upwards, then the parts are added, then the warps upwards.
#pragma once

#include "common/philox.h"
#include "cuda/conditional.cuh"
#include "cuda/device.cuh"

namespace pyar::cuda {

constexpr int kLstmWarps = 8;
constexpr int kLstmThreads = kLstmWarps * kWarp;
constexpr int kMostSamples = 512;  // of one group

// What layer 0 adds to its gates for every input, and what the others add, as the sampling kernels read it.
struct LstmTables {
  int H, K, layers;
  int64_t width;             // H and padding
  const float* weight_ih_0;  // [4H, K], or [4H, 1] for scalar input
  const float* bias_ih[4];   // [4H]
  const float* bias_hh[4];   // [4H]
  bool scalar;
  float4* inputs;  // [K + 1, width] of gates i, f, g, o: state k − 1 in layer 0, biases included; row 0 is no input
  float4* biases;  // [layers, width]: bias_ih + bias_hh

  PYAR_HOST_DEVICE int64_t size() const { return (K + 1 + layers) * width; }

  // Makes element i of the inputs and biases, one behind the other.
  PYAR_DEVICE void pack(int64_t i) const {
    const int64_t row = i / width, unit = i % width;
    const int64_t layer = row <= K ? 0 : row - K - 1;
    float gate[4] = {};
    if (unit < H) {
#pragma unroll
      for (int g = 0; g < 4; ++g) {
        const int64_t at = int64_t{g} * H + unit;
        float input = 0.0f;
        if (row > 0 && row <= K) {
          input = scalar ? static_cast<float>(row - 1) / static_cast<float>(K - 1) * weight_ih_0[at]
                         : weight_ih_0[at * K + row - 1];
        }
        gate[g] = input + bias_ih[layer][at] + bias_hh[layer][at];
      }
    }
    (row <= K ? inputs + i : biases + (i - (K + 1) * width))[0] = make_float4(gate[0], gate[1], gate[2], gate[3]);
  }
};

// The model, the samples and the memory of a sampling loop.
struct LstmLoop {
  int H, K, layers;
  int64_t width;             // H and padding
  const float4* inputs;      // [K + 1, width], see LstmTables
  const float4* biases;      // [layers, width]
  const float* head_weight;  // [K, H]
  const float* head_bias;    // [K]
  const int64_t* seed;       // []
  const uint8_t* given;      // [N, G]
  uint8_t* x;                // [N, D]
  float* log_prob;           // [N], of the drawn part
  uint64_t* words;           // [layers, 2, tiles, H, tile]: step + 1 above the bits of h; zeros at the start
  float* cells;              // [layers, tiles, width, tile]: c
  int64_t N;
  int64_t first_index;
  int64_t tiles;
  int groups;
  int blocks;  // thread blocks a group
  int D, G;
  float temperature;

  PYAR_DEVICE uint64_t* words_of(int layer, int d, int64_t tile, int tile_samples) const {
    return words + ((int64_t{layer} * 2 + (d & 1)) * tiles + tile) * (int64_t{H} * tile_samples);
  }
  PYAR_DEVICE float* cells_of(int layer, int64_t tile, int tile_samples) const {
    return cells + (layer * tiles + tile) * width * tile_samples;
  }
};

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

// The bfloat16 next to value, ties to even; NaN stays NaN.
PYAR_HOST_DEVICE uint32_t round_to_bfloat16(uint32_t bits) {
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

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

PYAR_DEVICE uint64_t load_word(const uint64_t* word) {
#if defined(PYAR_EMULATED)
  return *word;
#else
  uint64_t value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
  return value;
#endif
}

PYAR_DEVICE void store_word(uint64_t* word, uint64_t value) {
#if defined(PYAR_EMULATED)
  *word = value;
#else
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
#endif
}

PYAR_DEVICE void while_waiting() {
#if defined(PYAR_EMULATED)
  emulator::yield();
#endif
}

// Calls put(i, h[i]) for the h [count] of the step with this tag, as soon as it is there. Barriers around it are the
// caller's.
template <typename Put>
PYAR_DEVICE void receive(const uint64_t* words, int count, uint32_t tag, const Put& put) {
  constexpr int kAtATime = 8;
  for (int first = static_cast<int>(threadIdx.x); first < count; first += kAtATime * kLstmThreads) {
    uint64_t word[kAtATime];
#pragma unroll
    for (int i = 0; i < kAtATime; ++i) {
      const int at = first + i * kLstmThreads;
      word[i] = at < count ? load_word(words + at) : 0;
    }
#pragma unroll
    for (int i = 0; i < kAtATime; ++i) {
      const int at = first + i * kLstmThreads;
      if (at < count) {
        while (static_cast<uint32_t>(word[i] >> 32) != tag) {
          while_waiting();
          word[i] = load_word(words + at);
        }
        put(at, __uint_as_float(static_cast<uint32_t>(word[i])));
      }
    }
  }
}

// One cell: c from its gates i, f, g, o, and h to whoever waits for it.
PYAR_DEVICE void update_cell(float4 gates, float& c, uint64_t* word, int d) {
  c = sigmoid(gates.y) * c + sigmoid(gates.x) * tanhf(gates.z);
  const float h = sigmoid(gates.w) * tanhf(c);
  store_word(word, (static_cast<uint64_t>(d + 1) << 32) | __float_as_uint(h));
}

PYAR_DEVICE float4 add(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

// The states of step d of a tile's samples into states [kTile], from the conditionals' scratch [kTile, shared_floats],
// where `logits(scratch)` puts the logits; the first thread block of a group also writes them and adds their
// log-probabilities to totals [kTile]. Ends with a barrier.
template <int kTile, typename Logits>
PYAR_DEVICE void draw_tile(const LstmLoop& p, int d, int64_t first_n, float* scratch, int* states, double* totals,
                           bool reports, const Logits& logits) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const bool forced = d < p.G;
  if (!forced) {
    logits();
    __syncthreads();
  }
  for (int sample = warp; sample < kTile; sample += kLstmWarps) {
    const int64_t n = first_n + sample;
    const bool real = n < p.N;
    int state = 0;
    float log_probability = 0.0f;
    if (forced) {
      state = real ? p.given[n * p.G + d] : 0;
      if (state >= p.K) {  // refused by the Python layer where it can look; here it must only be harmless
        state = 0;
        log_probability = not_a_number();
      }
    } else {
      Categorical conditional(scratch + sample * Categorical::shared_floats(p.K), p.K);
      conditional.set(p.temperature);
      const float u = philox_uniform(static_cast<uint64_t>(*p.seed), static_cast<uint64_t>(p.first_index + n),
                                     static_cast<uint32_t>(d));
      state = conditional.valid() ? conditional.draw(u) : 0;
      log_probability = conditional.log_probability(state);
    }
    if (lane == 0) {
      states[sample] = state;
      if (reports) {
        totals[sample] += static_cast<double>(log_probability);
        if (real) p.x[n * p.D + d] = static_cast<uint8_t>(state);
      }
    }
  }
  __syncthreads();
}

// The totals [slots, kTile] of a group's tiles, summed over the steps, into log_prob.
template <int kTile>
PYAR_DEVICE void report_totals(const LstmLoop& p, int group, const double* totals) {
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  int slot = 0;
  for (int64_t tile = group; tile < p.tiles; tile += p.groups, ++slot) {
    const int64_t n = tile * kTile + thread;
    if (thread < kTile && n < p.N) p.log_prob[n] = static_cast<float>(totals[slot * kTile + thread]);
  }
}

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

}  // namespace pyar::cuda
