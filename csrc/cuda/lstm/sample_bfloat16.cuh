// PixelLSTM's sampling loop with the matrices in bfloat16, on the tensor cores; the loop is that of loop.cuh.
//
// The matrices that are read at every step (W_hh, and W_ih of all layers but the first) are rounded to bfloat16 and
// stored so; everything else stays float. h is not rounded: its 24 significant bits are dealt out to three bfloat16
// numbers, h = h_1 + h_2 + h_3 exactly, and W h = W h_1 + W h_2 + W h_3 has exact products in float sums. So what is
// sampled from, and what the log-probability belongs to, is the model of the rounded weights, as on the CPU, but for
// the rounding of sums.
//
// A strip is 16 units: 64 rows of W, four fragments of 16 rows, gates i, f and g, o of eight units each. Warps 0 to 3
// have the first eight units of a strip, warps 4 to 7 the others; warp w takes the tiles of 16 inputs w mod 4,
// w mod 4 + 4, …. The sum over inputs has one order, whatever the batch, the tile and the number of blocks: a tensor
// core's over the 16 inputs of a tile, then the tiles upwards, h_1's apart from those of h_2 and h_3, then these two,
// then the four warps. That is why small batches, which fill an eighth of a fragment with one sample, go this way too,
// and why the number of blocks may follow the batch. A layer's h of eight samples takes 48 H bytes of shared memory;
// where that does not fit, the float kernel runs with rounded weights.
#pragma once

#include "cuda/lstm/loop.cuh"

namespace pyar::cuda::lstm {

constexpr int kStripUnits = 16;
constexpr int kFragmentInputs = 16;  // inputs that one instruction sums over
constexpr int kFragmentSamples = 8;  // samples that it has
constexpr int kFragments = 4;        // of 16 rows, a strip
constexpr int kInputWarps = 4;       // warps that share the inputs of eight units
constexpr int kSplits = 3;           // of h

struct LstmBfloat16Plan {
  int H, K, layers;
  int strips;    // ⌈H / 16⌉ strips of 16 units, and as many tiles of 16 inputs
  int blocks;    // thread blocks a group
  bool on_chip;  // weights in shared memory

  // uint4's of packed weights: of one h's inputs of a strip, of a strip of one layer, of all layers before this one.
  PYAR_HOST_DEVICE int64_t source_size() const { return int64_t{kWarp} * kFragments * strips; }
  PYAR_HOST_DEVICE int64_t strip_size(int layer) const { return (layer == 0 ? 1 : 2) * source_size(); }
  PYAR_HOST_DEVICE int64_t layer_start(int layer) const {
    return layer == 0 ? 0 : (int64_t{2} * layer - 1) * source_size() * strips;
  }
  PYAR_HOST_DEVICE int most_strips() const { return (strips + blocks - 1) / blocks; }
  // uint4's of shared memory for a block's weights; 32-bit words for one h of a tile; floats for sums or conditionals.
  PYAR_HOST_DEVICE int64_t chip_size() const {
    return on_chip ? most_strips() * (int64_t{2} * layers - 1) * source_size() : 0;
  }
  PYAR_HOST_DEVICE int64_t h_words(int tile) const { return int64_t{kSplits} * tile * strips * kFragmentInputs / 2; }
  PYAR_HOST_DEVICE int64_t scratch_floats(int tile) const {
    const int64_t sums = int64_t{kInputWarps} * 4 * kStripUnits * tile;
    const int64_t conditionals = tile * Categorical::shared_floats(K);
    return sums > conditionals ? sums : conditionals;
  }
  PYAR_HOST_DEVICE int64_t shared_bytes(int tile) const {
    return int64_t{8} * kMostSamples + 16 * chip_size() +
           4 * ((layers == 1 ? 1 : 2) * h_words(tile) + scratch_floats(tile) + tile);
  }
};

struct LstmBfloat16PackArguments {
  LstmTables tables;
  LstmBfloat16Plan plan;
  const float* weight_ih[4];  // [4H, H] of the layers from 1 on
  const float* weight_hh[4];  // [4H, H]
  uint4* weights;  // of layer l from layer_start(l) on: [strips, sources · tiles of inputs, kFragments, 32 lanes]
};

// Each thread packs one lane's eight weights of one fragment at a time, then an element of the tables.
static __global__ void __launch_bounds__(256) lstm_pack_bfloat16_kernel(const LstmBfloat16PackArguments p) {
  const LstmBfloat16Plan& plan = p.plan;
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
    const int64_t input_tile = within % plan.strip_size(layer) / (kFragments * kWarp);
    const int fragment = static_cast<int>(within / kWarp % kFragments), lane = static_cast<int>(within % kWarp);
    // The layer below comes first, then the layer's own h.
    const bool below = layer > 0 && input_tile < plan.strips;
    const float* const matrix = below ? p.weight_ih[layer] : p.weight_hh[layer];
    // Rows lane / 4 of a fragment are the first of its two gates of eight units, rows lane / 4 + 8 the second.
    const int64_t unit = strip * kStripUnits + fragment / 2 * 8 + lane / 4;
    const int64_t first_k = input_tile % plan.strips * kFragmentInputs + lane % 4 * 2;
    uint32_t packed[4] = {};
#pragma unroll
    for (int element = 0; element < 8; ++element) {
      const int64_t k = first_k + element % 2 + element / 4 * 8;
      const int64_t gate = fragment % 2 * 2 + element / 2 % 2;
      if (unit < H && k < H) {
        const uint32_t weight = round_to_bfloat16(__float_as_uint(matrix[(gate * H + unit) * H + k]));
        packed[element / 2] |= weight << (element % 2 * 16);
      }
    }
    p.weights[i] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
  }
}

struct LstmBfloat16Arguments {
  LstmLoop loop;
  LstmBfloat16Plan plan;
  const uint4* weights;  // packed, as above
};

// A tile's h in shared memory: [kSplits, kTile / 8, inputs / 2, 8 samples] pairs of bfloat16, the even input in the
// lower half.
template <int kTile>
struct SplitH {
  uint32_t* words;
  int pairs;  // of inputs, padding included

  PYAR_DEVICE uint32_t* at(int split, int samples, int pair) const {
    return words + ((split * (kTile / kFragmentSamples) + samples) * pairs + pair) * kFragmentSamples;
  }

  // h of one unit and sample: eight significant bits to each split, so that nothing is lost.
  PYAR_DEVICE void put(int unit, int sample, float h) const {
#pragma unroll
    for (int split = 0; split < kSplits; ++split) {
      const uint32_t upper = __float_as_uint(h) & 0xffff0000u;
      uint32_t* const pair = at(split, sample / kFragmentSamples, unit / 2) + sample % kFragmentSamples;
      reinterpret_cast<uint16_t*>(pair)[unit % 2] = static_cast<uint16_t>(upper >> 16);
      h -= __uint_as_float(upper);
    }
  }

  // h of units 2 pair and 2 pair + 1 of eight samples.
  PYAR_DEVICE void get(int samples, int pair, float (&even)[kFragmentSamples], float (&odd)[kFragmentSamples]) const {
#pragma unroll
    for (int split = 0; split < kSplits; ++split) {
      uint32_t word[kFragmentSamples];
#pragma unroll
      for (int s = 0; s < kFragmentSamples; s += 4) {
        const uint4 four = *reinterpret_cast<const uint4*>(at(split, samples, pair) + s);
        word[s] = four.x, word[s + 1] = four.y, word[s + 2] = four.z, word[s + 3] = four.w;
      }
#pragma unroll
      for (int s = 0; s < kFragmentSamples; ++s) {
        const float low = __uint_as_float(word[s] << 16), high = __uint_as_float(word[s] & 0xffff0000u);
        even[s] = split == 0 ? low : even[s] + low;
        odd[s] = split == 0 ? high : odd[s] + high;
      }
    }
  }
};

// head_weight h + head_bias of a tile's samples into their conditionals' scratch.
template <int kTile>
PYAR_DEVICE void head_logits(const LstmLoop& p, const SplitH<kTile>& h, float* scratch) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int k = warp; k < p.K; k += kLstmWarps) {
    const float* const row = p.head_weight + static_cast<int64_t>(k) * p.H;
    for (int samples = 0; samples < kTile / kFragmentSamples; ++samples) {
      float sum[kFragmentSamples] = {};
      for (int unit = 2 * lane; unit < p.H; unit += 2 * kWarp) {
        const float w_even = __ldg(row + unit), w_odd = unit + 1 < p.H ? __ldg(row + unit + 1) : 0.0f;
        float even[kFragmentSamples], odd[kFragmentSamples];
        h.get(samples, unit / 2, even, odd);
#pragma unroll
        for (int s = 0; s < kFragmentSamples; ++s) sum[s] = fmaf(w_odd, odd[s], fmaf(w_even, even[s], sum[s]));
      }
      const float total = warp_sum_8(sum, lane);  // of sample lane / 4
      if (lane % 4 == 0) {
        const int sample = samples * kFragmentSamples + lane / 4;
        scratch[sample * Categorical::shared_floats(p.K) + k] = total + __ldg(p.head_bias + k);
      }
    }
  }
}

// sum[0] += W h_1 and sum[1] += W (h_2 + h_3) over this warp's inputs of one h, for its eight units: two fragments of
// rows by kTile / 8 fragments of samples, four numbers each.
template <int kTile, bool kOnChip>
PYAR_DEVICE void multiply(const uint4* weights, const SplitH<kTile>& h, int input_tiles,
                          float (&sum)[2][2][kTile / kFragmentSamples][4]) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll(kTile == kFragmentSamples ? 4 : 1)
  for (int input_tile = warp % kInputWarps; input_tile < input_tiles; input_tile += kInputWarps) {
    uint32_t w[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const uint4* const from =
          weights + (int64_t{input_tile} * kFragments + warp / kInputWarps * 2 + m) * kWarp + lane;
      uint4 four;
      if constexpr (kOnChip) {
        four = *from;
      } else {
        four = __ldg(from);
      }
      w[m][0] = four.x, w[m][1] = four.y, w[m][2] = four.z, w[m][3] = four.w;
    }
#pragma unroll
    for (int samples = 0; samples < kTile / kFragmentSamples; ++samples) {
#pragma unroll
      for (int split = 0; split < kSplits; ++split) {
        const uint32_t* const pair = h.at(split, samples, input_tile * (kFragmentInputs / 2) + lane % 4) + lane / 4;
        const uint32_t values[2] = {pair[0], pair[4 * kFragmentSamples]};
#pragma unroll
        for (int m = 0; m < 2; ++m) multiply_add_16x8x16(sum[split == 0 ? 0 : 1][m][samples], w[m], values);
      }
    }
  }
}

// Grid groups · blocks; tile i belongs to group i mod groups.
template <int kTile, bool kOnChip>
__global__ void __launch_bounds__(kLstmThreads, 1) lstm_sample_bfloat16_kernel(const LstmBfloat16Arguments arguments) {
  constexpr int kColumns = kTile / kFragmentSamples;
  constexpr int kCells = (kStripUnits * kTile + kLstmThreads - 1) / kLstmThreads;  // of a strip and a thread, at most
  const LstmLoop& p = arguments.loop;
  const LstmBfloat16Plan& plan = arguments.plan;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp, lane = thread % kWarp;
  const int group = static_cast<int>(blockIdx.x) / p.blocks, rank = static_cast<int>(blockIdx.x) % p.blocks;
  const int H = plan.H, last = plan.layers - 1;

  // Shared memory, the widest alignment first.
  double* const totals = reinterpret_cast<double*>(dynamic_shared());  // [kMostSamples]
  uint4* const chip = reinterpret_cast<uint4*>(totals + kMostSamples);
  uint32_t* const all_h = reinterpret_cast<uint32_t*>(chip + plan.chip_size());
  const int pairs = plan.strips * kFragmentInputs / 2;
  const SplitH<kTile> own = {all_h, pairs};                                               // a layer's own h
  const SplitH<kTile> below = {all_h + (last > 0 ? 1 : 0) * plan.h_words(kTile), pairs};  // the layer below's
  float* const scratch = reinterpret_cast<float*>(all_h + (last > 0 ? 2 : 1) * plan.h_words(kTile));
  int* const states = reinterpret_cast<int*>(scratch + plan.scratch_floats(kTile));  // [kTile]

  for (int64_t i = thread; i < (last > 0 ? 2 : 1) * plan.h_words(kTile); i += kLstmThreads) all_h[i] = 0;
  for (int i = thread; i < kMostSamples; i += kLstmThreads) totals[i] = 0.0;
  if constexpr (kOnChip) {
    // Layer by layer, this block's strips rank, rank + blocks, … one behind the other.
    uint4* to = chip;
    for (int layer = 0; layer <= last; ++layer) {
      const int64_t size = plan.strip_size(layer);
      for (int strip = rank; strip < plan.strips; strip += p.blocks) {
        const uint4* const from = arguments.weights + plan.layer_start(layer) + strip * size;
        for (int64_t i = thread; i < size; i += kLstmThreads) to[i] = __ldg(from + i);
        to += size;
      }
    }
  }
  __syncthreads();

  const auto receive_h = [&](int layer, int d, int64_t tile, const SplitH<kTile>& h) {
    receive(p.words_of(layer, d, tile, kTile), H * kTile, static_cast<uint32_t>(d) + 1,
            [h](int i, float value) { h.put(i / kTile, i % kTile, value); });
  };

  for (int d = 0; d <= p.D; ++d) {
    int slot = 0;  // of the tile within the group
    for (int64_t tile = group; tile < p.tiles; tile += p.groups, ++slot) {
      if (d > 0) {
        receive_h(last, d - 1, tile, own);
        __syncthreads();
        draw_tile<kTile>(p, d - 1, tile * kTile, scratch, states, totals + slot * kTile, rank == 0,
                         [&] { head_logits<kTile>(p, own, scratch); });
      }
      if (d == p.D) continue;

      const uint4* chip_layer = chip;
      for (int layer = 0; layer <= last; ++layer) {
        // What this layer reads: the layer below at this step, its own h of the last step, which a single layer has.
        if (layer > 0) receive_h(layer - 1, d, tile, below);
        if (last > 0 && d > 0) receive_h(layer, d - 1, tile, own);
        if (last > 0) __syncthreads();

        for (int strip = rank; strip < plan.strips; strip += p.blocks) {
          const uint4* const weights =
              kOnChip ? chip_layer : arguments.weights + plan.layer_start(layer) + strip * plan.strip_size(layer);
          if constexpr (kOnChip) chip_layer += plan.strip_size(layer);
          // This thread's cells: number thread, thread + kLstmThreads, … of [units of the strip, samples of the tile].
          float* const cells = p.cells_of(layer, tile, kTile) + int64_t{strip} * kStripUnits * kTile;
          const int num_cells = (H - strip * kStripUnits < kStripUnits ? H - strip * kStripUnits : kStripUnits) * kTile;
          float c[kCells];
#pragma unroll
          for (int i = 0; i < kCells; ++i) {
            const int at = thread + i * kLstmThreads;
            c[i] = d > 0 && at < num_cells ? cells[at] : 0.0f;
          }

          float sum[2][2][kColumns][4] = {};
          if (layer > 0) multiply<kTile, kOnChip>(weights, below, plan.strips, sum);
          if (d > 0) {
            multiply<kTile, kOnChip>(weights + (layer > 0 ? plan.source_size() : 0), own, plan.strips, sum);
          }
          // [kInputWarps, kColumns, kFragments · 16 rows, 8 samples]
          const auto sums_at = [&](int input_warp, int column, int row) {
            return scratch + ((input_warp * kColumns + column) * kFragments * 16 + row) * kFragmentSamples;
          };
#pragma unroll
          for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int column = 0; column < kColumns; ++column) {
#pragma unroll
              for (int i = 0; i < 4; i += 2) {  // two samples of row lane / 4, then of row lane / 4 + 8
                const int row = (warp / kInputWarps * 2 + m) * 16 + lane / 4 + 4 * i;
                *reinterpret_cast<float2*>(sums_at(warp % kInputWarps, column, row) + lane % 4 * 2) = make_float2(
                    sum[0][m][column][i] + sum[1][m][column][i], sum[0][m][column][i + 1] + sum[1][m][column][i + 1]);
              }
            }
          }
          __syncthreads();
#pragma unroll
          for (int i = 0; i < kCells; ++i) {
            const int at = thread + i * kLstmThreads;
            if (at < num_cells) {
              const int unit = at / kTile, sample = at % kTile;
              const auto gate_of = [&](int input_warp, int gate) {
                const int row = (unit / 8 * 2 + gate / 2) * 16 + gate % 2 * 8 + unit % 8;
                return sums_at(input_warp, sample / kFragmentSamples, row)[sample % kFragmentSamples];
              };
              float gates[4];
#pragma unroll
              for (int gate = 0; gate < 4; ++gate) {
                gates[gate] = gate_of(0, gate);
#pragma unroll
                for (int other = 1; other < kInputWarps; ++other) gates[gate] += gate_of(other, gate);
              }
              const int64_t unit_of_layer = int64_t{strip} * kStripUnits + unit;
              const float4 total =
                  add(make_float4(gates[0], gates[1], gates[2], gates[3]),
                      layer == 0 ? __ldg(p.inputs + (d > 0 ? states[sample] + 1 : 0) * p.width + unit_of_layer)
                                 : __ldg(p.biases + layer * p.width + unit_of_layer));
              update_cell(total, c[i], p.words_of(layer, d, tile, kTile) + unit_of_layer * kTile + sample, d);
              cells[at] = c[i];
            }
          }
          __syncthreads();  // the sums have been read, and so have h and the states
        }
      }
    }
  }
  if (rank == 0) report_totals<kTile>(p, group, totals);
}

}  // namespace pyar::cuda::lstm
