// NADE's gradients on the GPU.
#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/nade/backward.cuh"
#include "cuda/nade/passes.cuh"

namespace pyar::cuda::nade {
namespace {

void launch_sum_samples(const Device& device, const float* value, int64_t N, int H, float* sum, bool fresh) {
  const LaunchShape shape = {dim3(static_cast<unsigned>(ceil_div(H, kWarp))), dim3(kBackwardWarps * kWarp),
                             4 * kBackwardWarps * kWarp};
  launch("nade_sum_samples", nade_sum_samples_kernel, shape, device, value, N, H, sum, fresh);
}

struct Gradients {
  Tensor W, c, V, b;
  std::vector<Tensor> mlp;
};

// From ∂L/∂(what the last layer rectified), in front [rows, F], to the layers' gradients, added to or set if fresh, and
// to ∂L/∂a through the conditional of each row alone [rows, H], which is returned. front and back: [rows, widest].
const float* layers_backward(const Parameters& parameters, const Device& device, const LayerRows& activations,
                             int64_t rows, float* front, float* back, Gradients& gradients, bool fresh) {
  for (int layer = parameters.num_layers() - 1; layer >= 0; --layer) {
    const int inputs = parameters.units(layer), outputs = parameters.units(layer + 1);
    launch_sum_samples(device, front, rows, outputs, write<float>(gradients.mlp[2 * layer + 1]), fresh);
    // ∂L/∂A = frontᵀ f, f being the layer's input; ∂L/∂f = front A.
    launch_product(device, {front, 1, outputs}, {activations.level(layer), 1, inputs}, outputs, inputs, rows,
                   StoreWeightGradient{write<float>(gradients.mlp[2 * layer]), fresh});
    launch_product(device, {front, outputs, 1}, {read<float>(parameters.mlp[2 * layer]), 1, inputs}, rows, inputs,
                   outputs, StoreInputGradient{activations.level(layer), back, layer == 0});
    std::swap(front, back);
  }
  return front;
}

// The gradients of Σ_n L_n. Either logits_gradient [N, D, P] is at hand, or L_n = upstream[n] log p(x_n), with `weight`
// for all n where upstream is null; then exact [N] gets log p(x_n) in double, if not null.
Gradients backward(const Parameters& parameters, const uint8_t* x, int64_t N, const Tensor& like,
                   const float* logits_gradient, const float* upstream, float weight, double* exact) {
  const NadeParameters& nade = parameters.nade;
  const bool none = N == 0 || nade.D == 0;
  const auto make = [&](const Tensor& parameter, bool zero) {
    return zero ? torch::stable::new_zeros(like, parameter.sizes(), ScalarType::Float)
                : torch::stable::new_empty(like, parameter.sizes(), ScalarType::Float);
  };
  Gradients gradients = {
      make(parameters.W, true), make(parameters.c, none), make(parameters.V, none), make(parameters.b, none), {}};
  for (const Tensor& parameter : parameters.mlp) gradients.mlp.push_back(make(parameter, none));
  if (none) return gradients;

  const Device device(like);
  const int64_t blocks = parameters.blocks(), outputs = static_cast<int64_t>(nade.D) * nade.P;
  const int64_t own_outputs = logits_gradient == nullptr ? outputs : 0;
  const bool layers = parameters.num_layers() > 0;
  const int64_t row_floats = layers ? parameters.row_floats() + 2 * parameters.widest : 0;
  const int64_t slab = slab_samples((blocks + 1) * nade.H + own_outputs + kBlockDims * row_floats, N);
  Tensor starts = allocate(like, {blocks, slab, nade.H}, ScalarType::Float);
  Tensor totals = allocate(like, {slab, nade.H}, ScalarType::Float);
  Tensor own = allocate(like, {slab * own_outputs}, ScalarType::Float);
  Tensor sums = allocate(like, {exact != nullptr ? blocks * slab : 0}, ScalarType::Double);
  std::optional<LayerRows> rows;
  if (layers) rows.emplace(parameters, like, slab, row_floats);
  const int64_t most_blocks = layers ? rows->most_blocks() : blocks;
  const int64_t most_rows = layers ? most_blocks * slab * kBlockDims : 0;
  Tensor front = allocate(like, {most_rows * parameters.widest}, ScalarType::Float);
  Tensor back = allocate(like, {most_rows * parameters.widest}, ScalarType::Float);
  const auto slices = [](int units) { return static_cast<unsigned>(ceil_div(units, kWarp)); };
  for (int64_t first = 0; first < N; first += slab) {
    const uint8_t* const states = x + first * nade.D;
    const int64_t count = std::min(slab, N - first);
    launch_starts(parameters, device, states, count, write<float>(starts));
    const float* const gradient = logits_gradient != nullptr ? logits_gradient + first * outputs : read<float>(own);
    for (int64_t block = 0; block < blocks; block += most_blocks) {
      const int64_t here = std::min(most_blocks, blocks - block);
      if (layers) rows->compute(device, states, count, read<float>(starts), block, here);
      if (logits_gradient == nullptr) {
        Teaching what;
        what.x = states;
        what.count = count;
        what.starts = layers ? nullptr : read<float>(starts);
        what.features = layers ? rows->features() : nullptr;
        what.first_block = static_cast<int>(block);
        what.feature_blocks = here;
        what.upstream = upstream != nullptr ? upstream + first : nullptr;
        what.weight = weight;
        what.gradient = write<float>(own);
        what.block_log_prob = exact != nullptr ? write<double>(sums) : nullptr;
        launch_teacher(parameters, device, what);
      }
      BlockGradientArguments arguments = {};
      arguments.nade = parameters.output;
      arguments.x = states;
      arguments.gradient = gradient;
      arguments.grad_V = write<float>(gradients.V);
      arguments.grad_b = write<float>(gradients.b);
      arguments.N = count;
      arguments.first_block = static_cast<int>(block);
      arguments.fresh = first == 0;
      const LaunchShape shape = {dim3(slices(parameters.output.H), static_cast<unsigned>(here)),
                                 dim3(kBackwardWarps * kWarp), static_cast<int64_t>(sizeof(BackwardShared))};
      if (!layers) {
        arguments.starts = write<float>(starts);
        arguments.grad_W = write<float>(gradients.W);
        launch("nade_block_gradient", nade_block_gradient_kernel<false>, shape, device, arguments);
        continue;
      }
      arguments.features = rows->features();
      arguments.grad_features = write<float>(front);
      launch("nade_block_gradient", nade_block_gradient_kernel<true>, shape, device, arguments);
      const float* const u = layers_backward(parameters, device, *rows, here * count * kBlockDims, write<float>(front),
                                             write<float>(back), gradients, first == 0 && block == 0);
      launch("nade_input_block", nade_input_block_kernel,
             {dim3(slices(nade.H), static_cast<unsigned>(here)), dim3(kBackwardWarps * kWarp),
              4 * kBlockDims * kTile * kWarp},
             device,
             {nade, states, u, write<float>(starts) + block * count * nade.H, write<float>(gradients.W), count,
              static_cast<int>(block)});
    }
    if (exact != nullptr) launch_sum_blocks(device, read<double>(sums), blocks, count, nullptr, exact + first);
    LaunchShape shape = {dim3(static_cast<unsigned>(ceil_div(nade.H, 128)), static_cast<unsigned>(count)), dim3(128)};
    launch("nade_later_blocks", nade_later_blocks_kernel, shape, device, write<float>(starts), write<float>(totals),
           blocks, count, nade.H);
    if (blocks > 1) {
      shape = {dim3(slices(nade.H), static_cast<unsigned>(blocks - 1)), dim3(kBackwardWarps * kWarp),
               4 * kWarp * kWarp};
      launch("nade_input_gradient", nade_input_gradient_kernel, shape, device, nade, states, read<float>(starts),
             write<float>(gradients.W), count);
    }
    launch_sum_samples(device, read<float>(totals), count, nade.H, write<float>(gradients.c), first == 0);
  }
  return gradients;
}

using GradientTuple = std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>>;

GradientTuple nade_log_prob_backward(Tensor grad_, Tensor x_, Tensor W, Tensor c, Tensor V, Tensor b,
                                     std::vector<Tensor> mlp) {
  const Parameters parameters(W, c, V, b, mlp);
  const Tensor x = dense_states(x_, "x", parameters.nade.D, V);
  const int64_t N = x.size(0);
  check_tensor(grad_, "grad", ScalarType::Float, {N}, V);
  const Tensor grad = dense(grad_);
  Gradients g = backward(parameters, read<uint8_t>(x), N, V, nullptr, read<float>(grad), 1.0f, nullptr);
  return {g.W, g.c, g.V, g.b, g.mlp};
}

GradientTuple nade_logits_backward(Tensor grad_, Tensor x_, Tensor W, Tensor c, Tensor V, Tensor b,
                                   std::vector<Tensor> mlp) {
  const Parameters parameters(W, c, V, b, mlp);
  const NadeParameters& nade = parameters.nade;
  const Tensor x = dense_states(x_, "x", nade.D, V);
  const int64_t N = x.size(0);
  check_tensor(grad_, "grad", ScalarType::Float, {N, nade.D, nade.P}, V);
  const Tensor grad = dense(grad_);
  Gradients g = backward(parameters, read<uint8_t>(x), N, V, read<float>(grad), nullptr, 1.0f, nullptr);
  return {g.W, g.c, g.V, g.b, g.mlp};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> nade_mean_nll(Tensor x_, Tensor W, Tensor c, Tensor V, Tensor b) {
  const Parameters parameters(W, c, V, b, {});
  const Tensor x = dense_states(x_, "x", parameters.nade.D, V);
  const int64_t N = x.size(0);
  Tensor loss = allocate(V, {}, ScalarType::Float);
  Tensor exact = allocate_zeros(V, {N}, ScalarType::Double);
  Gradients g = backward(parameters, read<uint8_t>(x), N, V, nullptr, nullptr,
                         N == 0 ? 0.0f : -1.0f / static_cast<float>(N), write<double>(exact));
  const Device device(V);
  launch("nade_mean", nade_mean_kernel, {dim3(1), dim3(256), 8 * 256}, device, read<double>(exact), N,
         write<float>(loss));
  return {loss, g.W, g.c, g.V, g.b};
}

}  // namespace
}  // namespace pyar::cuda::nade

STABLE_TORCH_LIBRARY_IMPL(pyar, PYAR_DISPATCH_KEY, m) {
  m.impl("nade_log_prob_backward", TORCH_BOX(&pyar::cuda::nade::nade_log_prob_backward));
  m.impl("nade_logits_backward", TORCH_BOX(&pyar::cuda::nade::nade_logits_backward));
  m.impl("nade_mean_nll", TORCH_BOX(&pyar::cuda::nade::nade_mean_nll));
}
