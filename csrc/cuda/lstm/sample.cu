// PixelLSTM's sampling in float on the GPU: the plan and the launches.
#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/lstm/sample.cuh"
#include "cuda/lstm/sampling.cuh"

namespace pyar::cuda::lstm {
namespace {

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

}  // namespace

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

namespace {

std::tuple<Tensor, Tensor> lstm_sample(std::vector<Tensor> weights, Tensor head_weight, Tensor head_bias, Tensor seed,
                                       int64_t N, int64_t first_index, int64_t D, double temperature,
                                       std::optional<Tensor> given) {
  Sampling s(std::move(weights), head_weight, head_bias, seed, N, first_index, D, temperature, given);
  if (N > 0 && D > 0) sample_float32(s, Device(s.head_weight), false);
  return {s.x, s.log_prob};
}

}  // namespace
}  // namespace pyar::cuda::lstm

STABLE_TORCH_LIBRARY_IMPL(pyar, PYAR_DISPATCH_KEY, m) {
  m.impl("lstm_sample", TORCH_BOX(&pyar::cuda::lstm::lstm_sample));
}
