// PixelLSTM's sampling on the GPU: arguments, the plan and the launches. The kernels are in lstm_sample.cuh.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/lstm_sample.cuh"

namespace pyar::cuda {
namespace {

constexpr int kMostLayers = 4;

LstmPlan make_plan(int H, int K, int layers, int q) {
  LstmPlan plan = {};
  plan.H = H;
  plan.K = K;
  plan.layers = layers;
  plan.q = q;
  plan.steps = static_cast<int>(ceil_div(H, q));
  plan.strips = static_cast<int>(ceil_div(H, kWarp / q));
  return plan;
}

// The weights on chip in one thread block if they fit, else spread over as many as there are strips, the broadest
// strips first; else from the L2 cache.
LstmPlan choose_plan(int H, int K, int layers, const Device& device) {
  for (const int q : {1, 2, 4}) {
    LstmPlan plan = make_plan(H, K, layers, q);
    plan.on_chip = true;
    for (const int blocks : {1, plan.strips}) {
      plan.blocks = blocks;
      const bool wanted = blocks > 1 || q == 1;
      if (wanted && blocks <= device.multiprocessors() && plan.shared_bytes(4) <= device.shared_limit()) return plan;
    }
  }
  LstmPlan plan = make_plan(H, K, layers, 1);
  plan.on_chip = false;
  plan.blocks = std::min(plan.strips, device.multiprocessors());
  return plan;
}

// Samples a tile: 1 or 4 where that gives every sample or every four a group of their own, 8 otherwise, if they fit.
int choose_tile(const LstmPlan& plan, int64_t N, int64_t groups, const Device& device) {
  const auto fits = [&](int tile) { return plan.shared_bytes(tile) <= device.shared_limit(); };
  if (N > 4 * groups && fits(8)) return 8;
  if (N > groups && fits(4)) return 4;
  STD_TORCH_CHECK(fits(1), "pyar: an LSTM with ", plan.H, " hidden units needs ", plan.shared_bytes(1),
                  " bytes of shared memory on the GPU, which has ", device.shared_limit());
  return 1;
}

std::tuple<Tensor, Tensor> lstm_sample(std::vector<Tensor> weights, Tensor head_weight_, Tensor head_bias_, Tensor seed,
                                       int64_t N, int64_t first_index, int64_t D, double temperature,
                                       std::optional<Tensor> given_) {
  STD_TORCH_CHECK(!weights.empty() && weights.size() % 4 == 0 && weights.size() <= 4 * kMostLayers,
                  "pyar: weights must hold 4 tensors for each of 1 to 4 layers, got ", weights.size());
  STD_TORCH_CHECK(head_weight_.dim() == 2, "pyar: head_weight has shape ", shape_text(head_weight_),
                  ", expected [K, H]");
  const int64_t K = head_weight_.size(0), H = head_weight_.size(1);
  const int layers = static_cast<int>(weights.size() / 4);
  STD_TORCH_CHECK(K >= 2 && K <= 256, "pyar: K must be 2 to 256, got ", K);
  STD_TORCH_CHECK(H >= 1 && H <= 65536, "pyar: H must be 1 to 65536, got ", H);
  STD_TORCH_CHECK(N >= 0 && first_index >= 0, "pyar: num_samples and first_index must not be negative, got ", N,
                  " and ", first_index);
  STD_TORCH_CHECK(D >= 0 && D < (int64_t{1} << 30), "pyar: num_dims must be 0 to 2^30, got ", D);
  STD_TORCH_CHECK(temperature > 0 && std::isfinite(temperature), "pyar: temperature must be positive and finite, got ",
                  temperature);
  check_tensor(head_weight_, "head_weight", ScalarType::Float, {K, H}, head_weight_);
  check_tensor(head_bias_, "head_bias", ScalarType::Float, {K}, head_weight_);
  check_tensor(seed, "seed", ScalarType::Long, {}, head_weight_);
  const Tensor head_weight = dense(head_weight_), head_bias = dense(head_bias_);
  STD_TORCH_CHECK(weights[0].dim() == 2 && (weights[0].size(1) == K || weights[0].size(1) == 1),
                  "pyar: weight_ih_l0 has shape ", shape_text(weights[0]), ", expected [4H, K] or [4H, 1]");
  const bool scalar = weights[0].size(1) == 1;
  for (int layer = 0; layer < layers; ++layer) {
    Tensor* const of = &weights[4 * layer];
    check_tensor(of[0], "weight_ih", ScalarType::Float, {4 * H, layer > 0 ? H : of[0].size(1)}, head_weight);
    check_tensor(of[1], "weight_hh", ScalarType::Float, {4 * H, H}, head_weight);
    check_tensor(of[2], "bias_ih", ScalarType::Float, {4 * H}, head_weight);
    check_tensor(of[3], "bias_hh", ScalarType::Float, {4 * H}, head_weight);
    for (int i = 0; i < 4; ++i) of[i] = dense(of[i]);
  }
  std::optional<Tensor> given;
  if (given_.has_value()) {
    check_tensor(*given_, "given", ScalarType::Byte, {N, -1}, head_weight);
    STD_TORCH_CHECK(given_->size(1) <= D, "pyar: given has shape ", shape_text(*given_), ", more than ", D,
                    " dimensions");
    given = dense(*given_);
  }
  const Tensor& like = head_weight;
  Tensor x = allocate(like, {N, D}, ScalarType::Byte);
  Tensor log_prob = D == 0 ? allocate_zeros(like, {N}, ScalarType::Float) : allocate(like, {N}, ScalarType::Float);
  if (N == 0 || D == 0) return {x, log_prob};

  const Device device(like);
  const LstmPlan plan = choose_plan(static_cast<int>(H), static_cast<int>(K), layers, device);
  const int64_t most_groups = std::max(1, device.multiprocessors() / plan.blocks);
  const int tile = choose_tile(plan, N, most_groups, device);
  const int64_t width = int64_t{plan.strips} * plan.units();

  const int64_t packed_weights = plan.layer_start(layers);
  Tensor packed = allocate(like, {4 * (packed_weights + (K + 1 + layers) * width)}, ScalarType::Float);
  LstmPackArguments pack = {};
  pack.plan = plan;
  for (int layer = 0; layer < layers; ++layer) {
    pack.weight_ih[layer] = read<float>(weights[4 * layer]);
    pack.weight_hh[layer] = read<float>(weights[4 * layer + 1]);
    pack.bias_ih[layer] = read<float>(weights[4 * layer + 2]);
    pack.bias_hh[layer] = read<float>(weights[4 * layer + 3]);
  }
  pack.scalar = scalar;
  pack.weights = reinterpret_cast<float4*>(write<float>(packed));
  pack.inputs = pack.weights + packed_weights;
  pack.biases = pack.inputs + (K + 1) * width;
  const int64_t pack_blocks = ceil_div(packed_weights + (K + 1 + layers) * width, 256);
  launch("lstm_pack", lstm_pack_kernel,
         {dim3(static_cast<unsigned>(std::min<int64_t>(pack_blocks, 16 * device.multiprocessors()))), dim3(256)},
         device, pack);

  // As many samples at a time as the groups' tiles hold.
  const int64_t slab = std::min(N, most_groups * kMostTiles * tile);
  const int64_t most_tiles = ceil_div(slab, tile);
  Tensor cells = allocate(like, {layers, most_tiles, width, tile}, ScalarType::Float);
  for (int64_t first = 0; first < N; first += slab) {
    const int64_t count = std::min(slab, N - first);
    const int64_t tiles = ceil_div(count, tile);
    // Zeros are nobody's step: steps count from 1.
    Tensor words = allocate_zeros(like, {layers, 2, tiles, H, tile}, ScalarType::Long);
    LstmSampleArguments arguments = {};
    arguments.plan = plan;
    arguments.weights = pack.weights;
    arguments.inputs = pack.inputs;
    arguments.biases = pack.biases;
    arguments.head_weight = read<float>(head_weight);
    arguments.head_bias = read<float>(head_bias);
    arguments.seed = read<int64_t>(seed);
    arguments.G = given.has_value() ? static_cast<int>(given->size(1)) : 0;
    arguments.given = given.has_value() ? read<uint8_t>(*given) + first * arguments.G : nullptr;
    arguments.x = write<uint8_t>(x) + first * D;
    arguments.log_prob = write<float>(log_prob) + first;
    arguments.words = reinterpret_cast<uint64_t*>(write<int64_t>(words));
    arguments.cells = write<float>(cells);
    arguments.N = count;
    arguments.first_index = first_index + first;
    arguments.tiles = tiles;
    arguments.groups = static_cast<int>(std::min(most_groups, tiles));
    arguments.D = static_cast<int>(D);
    arguments.temperature = static_cast<float>(temperature);
    LaunchShape shape;
    shape.grid = dim3(static_cast<unsigned>(arguments.groups * plan.blocks));
    shape.block = dim3(kLstmThreads);
    shape.shared = plan.shared_bytes(tile);
    shape.cooperative = true;
    const auto run = [&](auto kernel) { launch("lstm_sample", kernel, shape, device, arguments); };
    if (plan.on_chip) {
      run(tile == 1   ? lstm_sample_kernel<1, true>
          : tile == 4 ? lstm_sample_kernel<4, true>
                      : lstm_sample_kernel<8, true>);
    } else {
      run(tile == 1   ? lstm_sample_kernel<1, false>
          : tile == 4 ? lstm_sample_kernel<4, false>
                      : lstm_sample_kernel<8, false>);
    }
  }
  return {x, log_prob};
}

}  // namespace
}  // namespace pyar::cuda

STABLE_TORCH_LIBRARY_IMPL(pyar, PYAR_DISPATCH_KEY, m) { m.impl("lstm_sample", TORCH_BOX(&pyar::cuda::lstm_sample)); }
