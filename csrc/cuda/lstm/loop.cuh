// PixelLSTM's whole sampling loop in one launch: what its kernels (sample.cuh, sample_bfloat16.cuh) share.
//
//   (i, f, g, o) = W_ih y + b_ih + W_hh h + b_hh     c ← σ(f) c + σ(i) tanh(g)     h ← σ(o) tanh(c)
//   p(x_d) = softmax(head_weight h + head_bias),     y of the next step: x_d
//
// A *group* of thread blocks carries tiles of samples through all steps. The hidden units are dealt out in strips, and
// every thread block of a group has some strips of every layer, with their weights in shared memory if they fit
// (kOnChip), else read from the L2 cache. After each layer of each step the blocks tell each other their part of h
// through global memory, one 64-bit word a value: the value and the step that it belongs to. Reader and writer need no
// fence, since the word is written and read as a whole, and a reader waits until the word of the step that it wants is
// there. Every block computes the logits for itself and draws from the same counter.
//
// Words are kept for two steps. A block writes step t + 2 only after it has read step t + 1 of all blocks, and each of
// these wrote that only after it had read step t of all: so nobody still waits for the word that is overwritten. All
// blocks of a group must be resident at once, which the cooperative launch makes sure of.
#pragma once

#include "common/philox.h"
#include "cuda/conditional.cuh"
#include "cuda/device.cuh"

namespace pyar::cuda::lstm {

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

// The bfloat16 next to value, ties to even; NaN stays NaN.
PYAR_HOST_DEVICE uint32_t round_to_bfloat16(uint32_t bits) {
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

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

}  // namespace pyar::cuda::lstm
