// NADE on the GPU: arguments, workspace and launches. The kernels are in nade_forward.cuh and nade_backward.cuh.
//
// Nothing here waits for the GPU, and all memory comes from torch, so that every operation can be captured in a graph.
#include <algorithm>
#include <tuple>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/nade_backward.cuh"
#include "cuda/nade_forward.cuh"

namespace pyar::cuda {
namespace {

// Workspace that one slab of samples may take, in bytes.
#if defined(PYAR_EMULATED)
constexpr int64_t kSlabBytes = 1024;  // so that small tests have several slabs
#else
constexpr int64_t kSlabBytes = int64_t{128} << 20;
#endif

// Contiguous copies of the parameters, where they were not contiguous, and what the kernels read of them.
struct Parameters {
  Tensor W, c, V, b;
  NadeParameters nade;

  Parameters(const Tensor& W_, const Tensor& c_, const Tensor& V_, const Tensor& b_, const std::vector<Tensor>& mlp)
      : W(dense(W_)), c(dense(c_)), V(dense(V_)), b(dense(b_)) {
    STD_TORCH_CHECK(mlp.empty(), "pyar: the CUDA kernels have no added layers (mlp); use the reference");
    STD_TORCH_CHECK(V.dim() == 3 && (W.dim() == 2 || W.dim() == 3), "pyar: V has shape ", shape_text(V), " and W ",
                    shape_text(W), ", expected [D, P, H] and [D, K-1, H] or [D, H]");
    const int64_t D = V.size(0), P = V.size(1), H = V.size(2);
    const int64_t K = P == 1 ? 2 : P;
    const bool scalar = W.dim() == 2;
    STD_TORCH_CHECK(K <= 256 && P >= 1, "pyar: K must be 2 to 256, V has shape ", shape_text(V));
    STD_TORCH_CHECK(H >= 1 && H <= 4096, "pyar: the CUDA kernels need 1 to 4096 hidden units, got ", H);
    STD_TORCH_CHECK(D <= int64_t{65535} * kBlockDims, "pyar: the CUDA kernels need at most ",
                    int64_t{65535} * kBlockDims, " dimensions, got ", D);
    check_tensor(V, "V", ScalarType::Float, {D, P, H}, V);
    if (scalar) {
      check_tensor(W, "W", ScalarType::Float, {D, H}, V);
    } else {
      check_tensor(W, "W", ScalarType::Float, {D, K - 1, H}, V);
    }
    check_tensor(c, "c", ScalarType::Float, {H}, V);
    check_tensor(b, "b", ScalarType::Float, {D, P}, V);
    nade.W = read<float>(W);
    nade.c = read<float>(c);
    nade.V = read<float>(V);
    nade.b = read<float>(b);
    nade.D = static_cast<int>(D);
    nade.H = static_cast<int>(H);
    nade.P = static_cast<int>(P);
    nade.K = static_cast<int>(K);
    nade.R = scalar ? 1 : nade.K - 1;
    nade.scalar = scalar;
    nade.vector = H % 4 == 0 && aligned_16(nade.W) && aligned_16(nade.c) && aligned_16(nade.V);
  }

  int64_t blocks() const { return ceil_div(nade.D, kBlockDims); }
  // Hidden units of a lane and warps of a unit: functions of H alone, because they set the order of the sums.
  int per_lane() const { return nade.H <= 4 * kWarp ? 4 : 16; }
  int groups() const { return static_cast<int>(ceil_div(nade.H, kWarp * per_lane())); }
  int64_t width() const { return static_cast<int64_t>(groups()) * kWarp * per_lane(); }
};

// A type as a value.
template <typename T>
struct TypeOf {
  using type = T;
};

// Calls f with the kind of conditional and the hidden units of a lane, both known at compile time.
template <typename F>
void with_sizes(const Parameters& parameters, const F& f) {
  const auto with_conditional = [&](auto conditional) {
    if (parameters.per_lane() == 4) {
      f(conditional, std::integral_constant<int, 4>());
    } else {
      f(conditional, std::integral_constant<int, 16>());
    }
  };
  if (parameters.nade.P == 1) {
    with_conditional(TypeOf<Bernoulli>());
  } else {
    with_conditional(TypeOf<Categorical>());
  }
}

// Shared memory of one warp for its sums and its conditional, in bytes.
int64_t warp_bytes(const Parameters& parameters) {
  const int P = parameters.nade.P, groups = parameters.groups();
  return 4 * (P == 1 ? warp_floats<Bernoulli>(P, groups) : warp_floats<Categorical>(P, groups));
}

Tensor dense_states(const Tensor& x, const char* name, int64_t columns, const Tensor& like) {
  check_tensor(x, name, ScalarType::Byte, {-1, columns}, like);
  return dense(x);
}

// What the teacher kernel is to compute of `count` samples.
struct Teaching {
  const uint8_t* x;
  int64_t count;
  const float* starts = nullptr;
  const float* upstream = nullptr;
  float weight = 1.0f;
  double* block_log_prob = nullptr;
  float* logits = nullptr;
  float* gradient = nullptr;
};

void launch_starts(const Parameters& parameters, const Device& device, const uint8_t* x, int64_t count, float* starts) {
  const LaunchShape shape = {
      dim3(static_cast<unsigned>(ceil_div(parameters.nade.H, 128)), static_cast<unsigned>(count)), dim3(128)};
  launch("nade_starts", nade_starts_kernel, shape, device, {parameters.nade, x, starts, count});
}

void launch_teacher(const Parameters& parameters, const Device& device, const Teaching& what) {
  const int groups = parameters.groups();
  const int units = std::max(1, 4 / groups);
  const TeacherArguments arguments = {
      parameters.nade, what.x,        what.starts, what.upstream, what.weight, what.block_log_prob,
      what.logits,     what.gradient, what.count,  units,         groups};
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(ceil_div(what.count, units)),
                    what.starts == nullptr ? 1u : static_cast<unsigned>(parameters.blocks()));
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

// Samples of a slab, if each needs so many floats of workspace.
int64_t slab_samples(int64_t floats, int64_t N) {
  return std::min(N, std::clamp<int64_t>(kSlabBytes / (4 * std::max<int64_t>(floats, 1)) / 32 * 32, 32, 32768));
}

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
  const bool split = !fills(parameters, device, N);
  const int64_t blocks = split ? parameters.blocks() : 1;
  const int64_t slab = split ? slab_samples(blocks * nade.H, N) : std::min<int64_t>(N, int64_t{1} << 24);
  Tensor starts = allocate(like, {split ? blocks * slab * nade.H : 0}, ScalarType::Float);
  Tensor sums = allocate(like, {log_prob != nullptr ? blocks * slab : 0}, ScalarType::Double);
  for (int64_t first = 0; first < N; first += slab) {
    Teaching what;
    what.x = x + first * nade.D;
    what.count = std::min(slab, N - first);
    if (split) {
      launch_starts(parameters, device, what.x, what.count, write<float>(starts));
      what.starts = read<float>(starts);
    }
    if (log_prob != nullptr) what.block_log_prob = write<double>(sums);
    if (logits != nullptr) what.logits = logits + first * nade.D * nade.P;
    launch_teacher(parameters, device, what);
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

struct Gradients {
  Tensor W, c, V, b;
};

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
  Gradients gradients = {make(parameters.W, true), make(parameters.c, none), make(parameters.V, none),
                         make(parameters.b, none)};
  if (none) return gradients;

  const Device device(like);
  const int64_t blocks = parameters.blocks(), outputs = static_cast<int64_t>(nade.D) * nade.P;
  const int64_t own_outputs = logits_gradient == nullptr ? outputs : 0;
  const int64_t slab = slab_samples((blocks + 1) * nade.H + own_outputs, N);
  Tensor starts = allocate(like, {blocks, slab, nade.H}, ScalarType::Float);
  Tensor totals = allocate(like, {slab, nade.H}, ScalarType::Float);
  Tensor own = allocate(like, {slab * own_outputs}, ScalarType::Float);
  Tensor sums = allocate(like, {exact != nullptr ? blocks * slab : 0}, ScalarType::Double);
  const unsigned slices = static_cast<unsigned>(ceil_div(nade.H, kWarp));
  for (int64_t first = 0; first < N; first += slab) {
    const uint8_t* const states = x + first * nade.D;
    const int64_t count = std::min(slab, N - first);
    launch_starts(parameters, device, states, count, write<float>(starts));
    const float* gradient = nullptr;
    if (logits_gradient != nullptr) {
      gradient = logits_gradient + first * outputs;
    } else {
      Teaching what;
      what.x = states;
      what.count = count;
      what.starts = read<float>(starts);
      what.upstream = upstream != nullptr ? upstream + first : nullptr;
      what.weight = weight;
      what.gradient = write<float>(own);
      what.block_log_prob = exact != nullptr ? write<double>(sums) : nullptr;
      launch_teacher(parameters, device, what);
      if (exact != nullptr) launch_sum_blocks(device, read<double>(sums), blocks, count, nullptr, exact + first);
      gradient = read<float>(own);
    }
    LaunchShape shape = {dim3(slices, static_cast<unsigned>(blocks)), dim3(kBackwardWarps * kWarp),
                         static_cast<int64_t>(sizeof(BackwardShared))};
    launch("nade_block_gradient", nade_block_gradient_kernel, shape, device,
           {nade, states, gradient, write<float>(starts), write<float>(gradients.W), write<float>(gradients.V),
            write<float>(gradients.b), count, first == 0});
    shape = {dim3(static_cast<unsigned>(ceil_div(nade.H, 128)), static_cast<unsigned>(count)), dim3(128)};
    launch("nade_later_blocks", nade_later_blocks_kernel, shape, device, write<float>(starts), write<float>(totals),
           blocks, count, nade.H);
    if (blocks > 1) {
      shape = {dim3(slices, static_cast<unsigned>(blocks - 1)), dim3(kBackwardWarps * kWarp), 4 * kWarp * kWarp};
      launch("nade_input_gradient", nade_input_gradient_kernel, shape, device, nade, states, read<float>(starts),
             write<float>(gradients.W), count);
    }
    shape = {dim3(slices), dim3(kBackwardWarps * kWarp), 4 * kBackwardWarps * kWarp};
    launch("nade_sum_samples", nade_sum_samples_kernel, shape, device, read<float>(totals), count, nade.H,
           write<float>(gradients.c), first == 0);
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
  return {g.W, g.c, g.V, g.b, {}};
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
  return {g.W, g.c, g.V, g.b, {}};
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
}  // namespace pyar::cuda

STABLE_TORCH_LIBRARY_IMPL(pyar, PYAR_DISPATCH_KEY, m) {
  m.impl("nade_log_prob", TORCH_BOX(&pyar::cuda::nade_log_prob));
  m.impl("nade_log_prob_backward", TORCH_BOX(&pyar::cuda::nade_log_prob_backward));
  m.impl("nade_logits", TORCH_BOX(&pyar::cuda::nade_logits));
  m.impl("nade_logits_backward", TORCH_BOX(&pyar::cuda::nade_logits_backward));
  m.impl("nade_mean_nll", TORCH_BOX(&pyar::cuda::nade_mean_nll));
  m.impl("nade_sample", TORCH_BOX(&pyar::cuda::nade_sample));
}
