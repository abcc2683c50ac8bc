#include <algorithm>

#include "cuda/nade/forward.cuh"
#include "cuda/nade/passes.cuh"

namespace pyar::cuda::nade {
namespace {

// Workspace that one slab of samples may take, in bytes.
#if defined(PYAR_EMULATED)
constexpr int64_t kSlabBytes = 8192;  // so that small tests have several slabs
#else
constexpr int64_t kSlabBytes = int64_t{128} << 20;
#endif

}  // namespace

void launch_starts(const Parameters& parameters, const Device& device, const uint8_t* x, int64_t count, float* starts) {
  const LaunchShape shape = {
      dim3(static_cast<unsigned>(ceil_div(parameters.nade.H, 128)), static_cast<unsigned>(count)), dim3(128)};
  launch("nade_starts", nade_starts_kernel, shape, device, {parameters.nade, x, starts, count});
}

void launch_teacher(const Parameters& parameters, const Device& device, const Teaching& what) {
  const int groups = parameters.groups();
  const int units = std::max(1, 4 / groups);
  const TeacherArguments arguments = {parameters.output,
                                      what.x,
                                      what.starts,
                                      what.features,
                                      what.first_block,
                                      what.upstream,
                                      what.weight,
                                      what.block_log_prob,
                                      what.logits,
                                      what.gradient,
                                      what.count,
                                      units,
                                      groups};
  const int64_t blocks = what.features != nullptr ? what.feature_blocks
                         : what.starts != nullptr ? parameters.blocks()
                                                  : 1;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(ceil_div(what.count, units)), static_cast<unsigned>(blocks));
  shape.block = dim3(static_cast<unsigned>(units * groups * kWarp));
  shape.shared = units * groups * warp_bytes(parameters);
  with_sizes(parameters, [&](auto conditional, auto per_lane) {
    using Conditional = typename decltype(conditional)::type;
    launch("nade_teacher", nade_teacher_kernel<Conditional, per_lane>, shape, device, arguments);
  });
}

void launch_sum_blocks(const Device& device, const double* block_log_prob, int64_t blocks, int64_t count,
                       float* log_prob, double* exact) {
  const LaunchShape shape = {dim3(static_cast<unsigned>(ceil_div(count, 128))), dim3(128)};
  launch("nade_sum_blocks", nade_sum_blocks_kernel, shape, device, block_log_prob, blocks, count, log_prob, exact);
}

int64_t slab_samples(int64_t floats, int64_t N) {
  return std::min(N, std::clamp<int64_t>(kSlabBytes / (4 * std::max<int64_t>(floats, 1)) / 32 * 32, 32, 32768));
}

LayerRows::LayerRows(const Parameters& parameters, const Tensor& like, int64_t slab, int64_t row_floats)
    : parameters_(parameters),
      most_blocks_(std::clamp<int64_t>(kSlabBytes / std::max<int64_t>(4 * slab * kBlockDims * row_floats, 1), 1,
                                       parameters.blocks())) {
  for (int level = 0; level <= parameters.num_layers(); ++level) {
    values_.push_back(allocate(like, {most_blocks_ * slab * kBlockDims, parameters.units(level)}, ScalarType::Float));
  }
}

void LayerRows::compute(const Device& device, const uint8_t* x, int64_t count, const float* starts, int64_t first_block,
                        int64_t blocks) {
  const int H = parameters_.nade.H;
  const LaunchShape shape = {dim3(static_cast<unsigned>(ceil_div(H, 128) * blocks), static_cast<unsigned>(count)),
                             dim3(128)};
  launch("nade_hidden", nade_hidden_kernel, shape, device,
         {parameters_.nade, x, starts + first_block * count * H, write<float>(values_[0]), count,
          static_cast<int>(first_block), static_cast<int>(blocks)});
  for (int layer = 0; layer < parameters_.num_layers(); ++layer) {
    const int inputs = parameters_.units(layer), outputs = parameters_.units(layer + 1);
    launch_product(device, {level(layer), inputs, 1}, {read<float>(parameters_.mlp[2 * layer]), inputs, 1},
                   blocks * count * kBlockDims, outputs, inputs,
                   StoreLayer{read<float>(parameters_.mlp[2 * layer + 1]), write<float>(values_[layer + 1])});
  }
}

}  // namespace pyar::cuda::nade
