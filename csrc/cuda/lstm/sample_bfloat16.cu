// PixelLSTM's sampling in bfloat16 on the GPU: the plan and the launches.
#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/lstm/sample_bfloat16.cuh"
#include "cuda/lstm/sampling.cuh"

namespace pyar::cuda::lstm {
namespace {

// How the model is dealt out, and the samples of a tile, 8 or 32; none where h alone, of eight samples, takes more than
// the shared memory. The fewer thread blocks a group has, the more groups there are and the less is exchanged: so no
// more blocks than hold the weights on chip, unless a small batch leaves some idle.
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
}  // namespace pyar::cuda::lstm

STABLE_TORCH_LIBRARY_IMPL(pyar, PYAR_DISPATCH_KEY, m) {
  m.impl("lstm_sample_bfloat16", TORCH_BOX(&pyar::cuda::lstm::lstm_sample_bfloat16));
}
