// PixelLSTM's sampling on the GPU: arguments, the plan and the launches. The kernels are in sample.cuh
// and sample_bfloat16.cuh.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/lstm/sample.cuh"
#include "cuda/lstm/sample_bfloat16.cuh"

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

void check_fits(int64_t bytes, int H, const Device& device) {
  STD_TORCH_CHECK(bytes <= device.shared_limit(), "pyar: an LSTM with ", H, " hidden units needs ", bytes,
                  " bytes of shared memory on the GPU, which has ", device.shared_limit());
}

// Samples a tile: 1 or 4 where that gives every sample or every four a group of their own, 8 otherwise, if they fit.
int choose_tile(const LstmPlan& plan, int64_t N, int64_t groups, const Device& device) {
  const auto fits = [&](int tile) { return plan.shared_bytes(tile) <= device.shared_limit(); };
  if (N > 4 * groups && fits(8)) return 8;
  if (N > groups && fits(4)) return 4;
  check_fits(plan.shared_bytes(1), plan.H, device);
  return 1;
}

// The same for bfloat16, and the samples of a tile, 8 or 32; none where h alone, of eight samples, takes more than the
// shared memory. The fewer thread blocks a group has, the more groups there
// are and the less is exchanged: so no more blocks than hold the weights on chip, unless a small batch leaves some
// idle.
std::optional<std::tuple<LstmBfloat16Plan, int>> choose_bfloat16_plan(int H, int K, int layers, int64_t N,
                                                                      const Device& device) {
  LstmBfloat16Plan plan = {};
  plan.H = H;
  plan.K = K;
  plan.layers = layers;
  plan.strips = static_cast<int>(ceil_div(H, kStripUnits));
  const int most_blocks = std::min(plan.strips, device.multiprocessors());
  // The fewest blocks whose strips fit on chip beside such a tile; most_blocks, from the L2 cache, if none do.
  const auto with_tile = [&](int tile) {
    LstmBfloat16Plan fitting = plan;
    fitting.on_chip = true;
    for (fitting.blocks = 1; fitting.blocks <= most_blocks; ++fitting.blocks) {
      if (fitting.shared_bytes(tile) <= device.shared_limit()) return fitting;
    }
    fitting.on_chip = false;
    fitting.blocks = most_blocks;
    return fitting;
  };
  plan = with_tile(8);
  if (plan.shared_bytes(8) > device.shared_limit()) return std::nullopt;
  int tile = 8;
  if (N > 8 * (device.multiprocessors() / plan.blocks)) {
    const LstmBfloat16Plan wide = with_tile(32);
    if (wide.on_chip == plan.on_chip && wide.shared_bytes(32) <= device.shared_limit()) plan = wide, tile = 32;
  }
  const int64_t for_all = device.multiprocessors() / ceil_div(N, tile);
  plan.blocks = static_cast<int>(std::clamp<int64_t>(for_all, plan.blocks, most_blocks));
  plan.blocks = static_cast<int>(ceil_div(plan.strips, plan.most_strips()));
  return std::tuple(plan, tile);
}

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

  Sampling(std::vector<Tensor> weights_, const Tensor& head_weight_, const Tensor& head_bias_, const Tensor& seed_,
           int64_t N_, int64_t first_index_, int64_t D_, double temperature_, const std::optional<Tensor>& given_)
      : weights(std::move(weights_)),
        head_weight(dense(head_weight_)),
        head_bias(dense(head_bias_)),
        seed(seed_),
        N(N_),
        first_index(first_index_),
        D(D_),
        temperature(static_cast<float>(temperature_)),
        x(head_weight),
        log_prob(head_weight) {
    STD_TORCH_CHECK(!weights.empty() && weights.size() % 4 == 0 && weights.size() <= 4 * kMostLayers,
                    "pyar: weights must hold 4 tensors for each of 1 to 4 layers, got ", weights.size());
    STD_TORCH_CHECK(head_weight.dim() == 2, "pyar: head_weight has shape ", shape_text(head_weight),
                    ", expected [K, H]");
    const int64_t states = head_weight.size(0), hidden = head_weight.size(1);
    STD_TORCH_CHECK(states >= 2 && states <= 256, "pyar: K must be 2 to 256, got ", states);
    STD_TORCH_CHECK(hidden >= 1 && hidden <= 65536, "pyar: H must be 1 to 65536, got ", hidden);
    STD_TORCH_CHECK(N >= 0 && first_index >= 0, "pyar: num_samples and first_index must not be negative, got ", N,
                    " and ", first_index);
    STD_TORCH_CHECK(D >= 0 && D < (int64_t{1} << 30), "pyar: num_dims must be 0 to 2^30, got ", D);
    STD_TORCH_CHECK(temperature_ > 0 && std::isfinite(temperature_),
                    "pyar: temperature must be positive and finite, got ", temperature_);
    K = static_cast<int>(states);
    H = static_cast<int>(hidden);
    layers = static_cast<int>(weights.size() / 4);
    check_tensor(head_weight, "head_weight", ScalarType::Float, {K, H}, head_weight);
    check_tensor(head_bias, "head_bias", ScalarType::Float, {K}, head_weight);
    check_tensor(seed, "seed", ScalarType::Long, {}, head_weight);
    STD_TORCH_CHECK(weights[0].dim() == 2 && (weights[0].size(1) == K || weights[0].size(1) == 1),
                    "pyar: weight_ih_l0 has shape ", shape_text(weights[0]), ", expected [4H, K] or [4H, 1]");
    scalar = weights[0].size(1) == 1;
    for (int layer = 0; layer < layers; ++layer) {
      Tensor* const of = &weights[4 * layer];
      check_tensor(of[0], "weight_ih", ScalarType::Float, {4 * hidden, layer > 0 ? H : of[0].size(1)}, head_weight);
      check_tensor(of[1], "weight_hh", ScalarType::Float, {4 * hidden, H}, head_weight);
      check_tensor(of[2], "bias_ih", ScalarType::Float, {4 * hidden}, head_weight);
      check_tensor(of[3], "bias_hh", ScalarType::Float, {4 * hidden}, head_weight);
      for (int i = 0; i < 4; ++i) of[i] = dense(of[i]);
    }
    if (given_.has_value()) {
      check_tensor(*given_, "given", ScalarType::Byte, {N, -1}, head_weight);
      STD_TORCH_CHECK(given_->size(1) <= D, "pyar: given has shape ", shape_text(*given_), ", more than ", D,
                      " dimensions");
      given = dense(*given_);
    }
    x = allocate(head_weight, {N, D}, ScalarType::Byte);
    log_prob =
        D == 0 ? allocate_zeros(head_weight, {N}, ScalarType::Float) : allocate(head_weight, {N}, ScalarType::Float);
  }
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
void sample_float32(Sampling& s, const Device& device, bool rounds) {
  const LstmPlan plan = choose_plan(s.H, s.K, s.layers, device);
  const int tile = choose_tile(plan, s.N, std::max(1, device.multiprocessors() / plan.blocks), device);
  run_sampling<LstmPlan, LstmPackArguments, LstmSampleArguments>(
      s, device, plan, tile, int64_t{plan.strips} * plan.units(),
      [&](LaunchShape shape, LstmPackArguments pack) {
        pack.rounds = rounds;
        launch("lstm_pack", lstm_pack_kernel, shape, device, pack);
      },
      [&](const LaunchShape& shape, const LstmSampleArguments& arguments) {
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
      });
}

void sample_bfloat16(Sampling& s, const Device& device, const LstmBfloat16Plan& plan, int tile) {
  void (*const kernel)(LstmBfloat16Arguments) =
      plan.on_chip ? (tile == 8 ? lstm_sample_bfloat16_kernel<8, true> : lstm_sample_bfloat16_kernel<32, true>)
                   : (tile == 8 ? lstm_sample_bfloat16_kernel<8, false> : lstm_sample_bfloat16_kernel<32, false>);
  run_sampling<LstmBfloat16Plan, LstmBfloat16PackArguments, LstmBfloat16Arguments>(
      s, device, plan, tile, int64_t{plan.strips} * kStripUnits,
      [&](const LaunchShape& shape, const LstmBfloat16PackArguments& pack) {
        launch("lstm_pack_bfloat16", lstm_pack_bfloat16_kernel, shape, device, pack);
      },
      [&](const LaunchShape& shape, const LstmBfloat16Arguments& arguments) {
        launch("lstm_sample_bfloat16", kernel, shape, device, arguments);
      });
}

std::tuple<Tensor, Tensor> lstm_sample(std::vector<Tensor> weights, Tensor head_weight, Tensor head_bias, Tensor seed,
                                       int64_t N, int64_t first_index, int64_t D, double temperature,
                                       std::optional<Tensor> given) {
  Sampling s(std::move(weights), head_weight, head_bias, seed, N, first_index, D, temperature, given);
  if (N > 0 && D > 0) sample_float32(s, Device(s.head_weight), false);
  return {s.x, s.log_prob};
}

std::tuple<Tensor, Tensor> lstm_sample_bfloat16(std::vector<Tensor> weights, Tensor head_weight, Tensor head_bias,
                                                Tensor seed, int64_t N, int64_t first_index, int64_t D,
                                                double temperature, std::optional<Tensor> given) {
  Sampling s(std::move(weights), head_weight, head_bias, seed, N, first_index, D, temperature, given);
  if (N == 0 || D == 0) return {s.x, s.log_prob};
  const Device device(s.head_weight);
  // Which kernel it is depends on the model and the GPU alone, so that the bits do not depend on the batch.
  if (const auto choice = choose_bfloat16_plan(s.H, s.K, s.layers, N, device)) {
    const auto [plan, tile] = *choice;
    sample_bfloat16(s, device, plan, tile);
  } else {
    sample_float32(s, device, true);
  }
  return {s.x, s.log_prob};
}

}  // namespace
}  // namespace pyar::cuda

STABLE_TORCH_LIBRARY_IMPL(pyar, PYAR_DISPATCH_KEY, m) {
  m.impl("lstm_sample", TORCH_BOX(&pyar::cuda::lstm_sample));
  m.impl("lstm_sample_bfloat16", TORCH_BOX(&pyar::cuda::lstm_sample_bfloat16));
}
