// NADE's log-probabilities and logits on the GPU.
#include <algorithm>
#include <optional>
#include <vector>

#include "cuda/nade/passes.cuh"

namespace pyar::cuda::nade {
namespace {

// Whether the samples alone fill the GPU; if not, the blocks of dimensions run side by side from their start values.
bool fills(const Parameters& parameters, const Device& device, int64_t N) {
  return N * parameters.groups() >= int64_t{32} * device.multiprocessors();
}

// Log-probabilities [N] and logits [N, D, P], either may be null.
void evaluate(const Parameters& parameters, const uint8_t* x, int64_t N, const Tensor& like, float* log_prob,
              float* logits) {
  const NadeParameters& nade = parameters.nade;
  const Device device(like);
  if (N == 0 || nade.D == 0) return;
  const bool layers = parameters.num_layers() > 0;
  const bool split = layers || !fills(parameters, device, N);
  const int64_t blocks = split ? parameters.blocks() : 1;
  const int64_t row_floats = parameters.row_floats();
  const int64_t slab =
      split ? slab_samples(blocks * nade.H + kBlockDims * row_floats, N) : std::min<int64_t>(N, int64_t{1} << 24);
  Tensor starts = allocate(like, {split ? blocks * slab * nade.H : 0}, ScalarType::Float);
  Tensor sums = allocate(like, {log_prob != nullptr ? blocks * slab : 0}, ScalarType::Double);
  std::optional<LayerRows> rows;
  if (layers) rows.emplace(parameters, like, slab, row_floats);
  for (int64_t first = 0; first < N; first += slab) {
    Teaching what;
    what.x = x + first * nade.D;
    what.count = std::min(slab, N - first);
    if (split) launch_starts(parameters, device, what.x, what.count, write<float>(starts));
    if (log_prob != nullptr) what.block_log_prob = write<double>(sums);
    if (logits != nullptr) what.logits = logits + first * nade.D * nade.P;
    if (!layers) {
      what.starts = split ? read<float>(starts) : nullptr;
      launch_teacher(parameters, device, what);
    } else {
      for (int64_t block = 0; block < blocks; block += rows->most_blocks()) {
        what.first_block = static_cast<int>(block);
        what.feature_blocks = std::min(rows->most_blocks(), blocks - block);
        rows->compute(device, what.x, what.count, read<float>(starts), block, what.feature_blocks);
        what.features = rows->features();
        launch_teacher(parameters, device, what);
      }
    }
    if (log_prob != nullptr)
      launch_sum_blocks(device, read<double>(sums), blocks, what.count, log_prob + first, nullptr);
  }
}

Tensor nade_log_prob(Tensor x_, Tensor W, Tensor c, Tensor V, Tensor b, std::vector<Tensor> mlp) {
  const Parameters parameters(W, c, V, b, mlp);
  const Tensor x = dense_states(x_, "x", parameters.nade.D, V);
  const int64_t N = x.size(0);
  Tensor log_prob =
      parameters.nade.D == 0 ? allocate_zeros(V, {N}, ScalarType::Float) : allocate(V, {N}, ScalarType::Float);
  evaluate(parameters, read<uint8_t>(x), N, V, write<float>(log_prob), nullptr);
  return log_prob;
}

Tensor nade_logits(Tensor x_, Tensor W, Tensor c, Tensor V, Tensor b, std::vector<Tensor> mlp) {
  const Parameters parameters(W, c, V, b, mlp);
  const NadeParameters& nade = parameters.nade;
  const Tensor x = dense_states(x_, "x", nade.D, V);
  const int64_t N = x.size(0);
  Tensor logits = allocate(V, {N, nade.D, nade.P}, ScalarType::Float);
  evaluate(parameters, read<uint8_t>(x), N, V, nullptr, write<float>(logits));
  return logits;
}

}  // namespace
}  // namespace pyar::cuda::nade

STABLE_TORCH_LIBRARY_IMPL(pyar, PYAR_DISPATCH_KEY, m) {
  m.impl("nade_log_prob", TORCH_BOX(&pyar::cuda::nade::nade_log_prob));
  m.impl("nade_logits", TORCH_BOX(&pyar::cuda::nade::nade_logits));
}
