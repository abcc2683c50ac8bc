// NADE's sampling on the GPU.
#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "cuda/nade/arguments.cuh"
#include "cuda/nade/sample.cuh"
#include "cuda/nade/sample_layers.cuh"

namespace pyar::cuda::nade {
namespace {

// x [N, D] and log_prob [N] of a model with added layers.
void sample_with_layers(const Parameters& parameters, const Device& device, const int64_t* seed,
                        const std::optional<Tensor>& given, int64_t first_index, float temperature, Tensor& x,
                        Tensor& log_prob) {
  LayersSampleArguments arguments = {};
  arguments.nade = parameters.nade;
  arguments.seed = seed;
  arguments.given = given.has_value() ? read<uint8_t>(*given) : nullptr;
  arguments.x = write<uint8_t>(x);
  arguments.log_prob = write<float>(log_prob);
  arguments.N = x.size(0);
  arguments.first_index = first_index;
  arguments.G = given.has_value() ? static_cast<int>(given->size(1)) : 0;
  arguments.temperature = temperature;
  arguments.F = parameters.output.H;
  arguments.per_lane = parameters.per_lane();
  arguments.groups = parameters.groups();
  arguments.widest = parameters.widest;
  arguments.num_layers = parameters.num_layers();
  std::vector<Tensor> transposed;
  for (int layer = 0; layer < parameters.num_layers(); ++layer) {
    const int64_t inputs = parameters.units(layer), outputs = parameters.units(layer + 1);
    transposed.push_back(allocate(x, {inputs, outputs}, ScalarType::Float));
    const int64_t blocks = std::min<int64_t>(ceil_div(inputs * outputs, 256), 16 * device.multiprocessors());
    launch("nade_transpose", nade_transpose_kernel, {dim3(static_cast<unsigned>(blocks)), dim3(256)}, device,
           read<float>(parameters.mlp[2 * layer]), outputs, inputs, write<float>(transposed.back()));
    arguments.layers[layer] = {read<float>(transposed.back()), read<float>(parameters.mlp[2 * layer + 1]),
                               static_cast<int>(inputs), static_cast<int>(outputs)};
  }

  // Samples a thread block: 8 or 4 where that leaves no multiprocessor without any, if they fit.
  const int P = parameters.nade.P;
  const auto bytes = [&](int samples) {
    return P == 1 ? layers_sample_bytes<Bernoulli>(parameters.nade.H, parameters.widest, P, samples)
                  : layers_sample_bytes<Categorical>(parameters.nade.H, parameters.widest, P, samples);
  };
  const auto suits = [&](int samples) {
    return arguments.N > samples / 2 * int64_t{device.multiprocessors()} && bytes(samples) <= device.shared_limit();
  };
  const int samples = suits(8) ? 8 : suits(4) ? 4 : 1;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(ceil_div(arguments.N, samples)));
  shape.block = dim3(kLayersThreads);
  shape.shared = bytes(samples);
  const auto run = [&](auto conditional) {
    using Conditional = typename decltype(conditional)::type;
    launch("nade_sample_layers",
           samples == 8   ? nade_sample_layers_kernel<Conditional, 8>
           : samples == 4 ? nade_sample_layers_kernel<Conditional, 4>
                          : nade_sample_layers_kernel<Conditional, 1>,
           shape, device, arguments);
  };
  if (P == 1) {
    run(TypeOf<Bernoulli>());
  } else {
    run(TypeOf<Categorical>());
  }
}

std::tuple<Tensor, Tensor> nade_sample(Tensor W, Tensor c, Tensor V, Tensor b, std::vector<Tensor> mlp, Tensor seed,
                                       int64_t N, int64_t first_index, double temperature,
                                       std::optional<Tensor> given_) {
  const Parameters parameters(W, c, V, b, mlp);
  const NadeParameters& nade = parameters.nade;
  check_tensor(seed, "seed", ScalarType::Long, {}, V);
  STD_TORCH_CHECK(N >= 0, "pyar: num_samples must be at least 0, got ", N);
  STD_TORCH_CHECK(temperature > 0, "pyar: temperature must be positive, got ", temperature);
  std::optional<Tensor> given;
  if (given_.has_value()) {
    check_tensor(*given_, "given", ScalarType::Byte, {N, -1}, V);
    STD_TORCH_CHECK(given_->size(1) <= nade.D, "pyar: given has shape ", shape_text(*given_), ", more than ", nade.D,
                    " dimensions");
    given = dense(*given_);
  }
  Tensor x = allocate(V, {N, nade.D}, ScalarType::Byte);
  Tensor log_prob = nade.D == 0 ? allocate_zeros(V, {N}, ScalarType::Float) : allocate(V, {N}, ScalarType::Float);
  if (N == 0 || nade.D == 0) return {x, log_prob};

  const Device device(V);
  if (parameters.num_layers() > 0) {
    sample_with_layers(parameters, device, read<int64_t>(seed), given, first_index, static_cast<float>(temperature), x,
                       log_prob);
    return {x, log_prob};
  }
  const int groups = parameters.groups();
  // As many samples a block as spread them over the whole GPU, but where a step reads many rows, at least four share
  // the copies.
  const int64_t sharing = nade.P > 1 ? 4 : 1;
  const int64_t spread = ceil_div(N, device.multiprocessors());
  const auto units_of = [&](int64_t most_warps) {
    return static_cast<int>(
        std::clamp<int64_t>(std::max(spread, sharing), 1, std::min<int64_t>(N, most_warps / groups)));
  };
  int units = units_of(16);
  const int64_t stage_bytes = int64_t{4} * kStages * (nade.P + nade.R) * parameters.width();
  const bool staged = stage_bytes + units * groups * warp_bytes(parameters) <= device.shared_limit();
  if (!staged) units = units_of(8);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(ceil_div(N, units)));
  shape.block = dim3(static_cast<unsigned>(std::max(units * groups, staged ? 4 : 1) * kWarp));
  shape.shared = units * groups * warp_bytes(parameters) + (staged ? stage_bytes : 0);
  const SampleArguments arguments = {nade,
                                     read<int64_t>(seed),
                                     given.has_value() ? read<uint8_t>(*given) : nullptr,
                                     write<uint8_t>(x),
                                     write<float>(log_prob),
                                     N,
                                     first_index,
                                     given.has_value() ? static_cast<int>(given->size(1)) : 0,
                                     static_cast<float>(temperature),
                                     units,
                                     groups};
  with_sizes(parameters, [&](auto conditional, auto per_lane) {
    using Conditional = typename decltype(conditional)::type;
    if (staged) {
      launch("nade_sample", nade_sample_kernel<Conditional, per_lane, true>, shape, device, arguments);
    } else {
      launch("nade_sample", nade_sample_kernel<Conditional, per_lane, false>, shape, device, arguments);
    }
  });
  return {x, log_prob};
}

}  // namespace
}  // namespace pyar::cuda::nade

STABLE_TORCH_LIBRARY_IMPL(pyar, PYAR_DISPATCH_KEY, m) {
  m.impl("nade_sample", TORCH_BOX(&pyar::cuda::nade::nade_sample));
}
