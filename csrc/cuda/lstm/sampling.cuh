// What sampling in float and in bfloat16 share on the host: checked arguments, memory, the launches slab by slab.
//
// Nothing here waits for the GPU, and all memory comes from torch, so that every operation can be captured in a graph.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/lstm/loop.cuh"

namespace pyar::cuda::lstm {

// The checked arguments of an operation, contiguous, and what it returns.
struct Sampling {
  std::vector<Tensor> weights;
  Tensor head_weight, head_bias, seed;
  std::optional<Tensor> given;
  int64_t N, first_index, D;
  float temperature;
  int H, K, layers;
  bool scalar;
  Tensor x, log_prob;

  // RuntimeError unless they belong together and the kernels are written for the sizes.
  Sampling(std::vector<Tensor> weights, const Tensor& head_weight, const Tensor& head_bias, const Tensor& seed,
           int64_t N, int64_t first_index, int64_t D, double temperature, const std::optional<Tensor>& given);
};

// Packs the weights and tables by launch_pack(shape, arguments), then runs launch_sample(shape, arguments) on as many
// samples at a time as the groups' tiles hold.
template <typename Plan, typename PackArguments, typename Arguments, typename LaunchPack, typename LaunchSample>
void run_sampling(Sampling& s, const Device& device, const Plan& plan, int tile, int64_t width,
                  const LaunchPack& launch_pack, const LaunchSample& launch_sample) {
  using Weights = decltype(PackArguments::weights);
  const Tensor& like = s.head_weight;
  const int64_t num_weights = plan.layer_start(s.layers);

  PackArguments pack = {};
  pack.plan = plan;
  for (int layer = 0; layer < s.layers; ++layer) {
    pack.weight_ih[layer] = read<float>(s.weights[4 * layer]);
    pack.weight_hh[layer] = read<float>(s.weights[4 * layer + 1]);
    pack.tables.bias_ih[layer] = read<float>(s.weights[4 * layer + 2]);
    pack.tables.bias_hh[layer] = read<float>(s.weights[4 * layer + 3]);
  }
  pack.tables.H = s.H;
  pack.tables.K = s.K;
  pack.tables.layers = s.layers;
  pack.tables.width = width;
  pack.tables.weight_ih_0 = pack.weight_ih[0];
  pack.tables.scalar = s.scalar;
  const int64_t num_elements = num_weights + pack.tables.size();
  Tensor packed = allocate(like, {4 * num_elements}, ScalarType::Float);  // of 16 bytes each
  pack.weights = reinterpret_cast<Weights>(write<float>(packed));
  pack.tables.inputs = reinterpret_cast<float4*>(pack.weights + num_weights);
  pack.tables.biases = pack.tables.inputs + (s.K + 1) * width;
  const int64_t pack_blocks = std::min<int64_t>(ceil_div(num_elements, 256), 16 * device.multiprocessors());
  launch_pack({dim3(static_cast<unsigned>(pack_blocks)), dim3(256)}, pack);

  const int64_t most_groups = std::max(1, device.multiprocessors() / plan.blocks);
  const int64_t slab = std::min(s.N, most_groups * kMostSamples);
  Tensor cells = allocate(like, {s.layers, ceil_div(slab, tile), width, tile}, ScalarType::Float);
  for (int64_t first = 0; first < s.N; first += slab) {
    const int64_t count = std::min(slab, s.N - first);
    const int64_t tiles = ceil_div(count, tile);
    // Zeros are nobody's step: steps count from 1.
    Tensor words = allocate_zeros(like, {s.layers, 2, tiles, s.H, tile}, ScalarType::Long);
    Arguments arguments = {};
    arguments.plan = plan;
    arguments.weights = pack.weights;
    LstmLoop& loop = arguments.loop;
    loop.H = s.H;
    loop.K = s.K;
    loop.layers = s.layers;
    loop.width = width;
    loop.inputs = pack.tables.inputs;
    loop.biases = pack.tables.biases;
    loop.head_weight = read<float>(s.head_weight);
    loop.head_bias = read<float>(s.head_bias);
    loop.seed = read<int64_t>(s.seed);
    loop.G = s.given.has_value() ? static_cast<int>(s.given->size(1)) : 0;
    loop.given = s.given.has_value() ? read<uint8_t>(*s.given) + first * loop.G : nullptr;
    loop.x = write<uint8_t>(s.x) + first * s.D;
    loop.log_prob = write<float>(s.log_prob) + first;
    loop.words = reinterpret_cast<uint64_t*>(write<int64_t>(words));
    loop.cells = write<float>(cells);
    loop.N = count;
    loop.first_index = s.first_index + first;
    loop.tiles = tiles;
    loop.groups = static_cast<int>(std::min(most_groups, tiles));
    loop.blocks = plan.blocks;
    loop.D = static_cast<int>(s.D);
    loop.temperature = s.temperature;
    LaunchShape shape;
    shape.grid = dim3(static_cast<unsigned>(loop.groups * plan.blocks));
    shape.block = dim3(kLstmThreads);
    shape.shared = plan.shared_bytes(tile);
    shape.cooperative = true;
    launch_sample(shape, arguments);
  }
}

// Samples by the float kernel, the weights rounded to bfloat16 or not.
void sample_float32(Sampling& s, const Device& device, bool rounds);

}  // namespace pyar::cuda::lstm
