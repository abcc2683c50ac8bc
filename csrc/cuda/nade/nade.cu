// NADE on the GPU: arguments, workspace and launches. The kernels are in forward.cuh, backward.cuh
// and, for added layers, layers.cuh.
//
// Nothing here waits for the GPU, and all memory comes from torch, so that every operation can be captured in a graph.
#include <algorithm>
#include <tuple>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/nade/backward.cuh"
#include "cuda/nade/forward.cuh"
#include "cuda/nade/layers.cuh"

namespace pyar::cuda {
namespace {

// Workspace that one slab of samples may take, in bytes.
#if defined(PYAR_EMULATED)
constexpr int64_t kSlabBytes = 8192;  // so that small tests have several slabs
#else
constexpr int64_t kSlabBytes = int64_t{128} << 20;
#endif

// Contiguous copies of the parameters, where they were not contiguous, and what the kernels read of them.
struct Parameters {
  Tensor W, c, V, b;
  std::vector<Tensor> mlp;  // A [M, inputs] and a [M] of every added layer
  NadeParameters nade;      // H hidden units
  NadeParameters output;    // F in the place of H: the width of V's rows
  int widest;               // of H and the added layers

  Parameters(const Tensor& W_, const Tensor& c_, const Tensor& V_, const Tensor& b_, const std::vector<Tensor>& mlp_)
      : W(dense(W_)), c(dense(c_)), V(dense(V_)), b(dense(b_)) {
    STD_TORCH_CHECK(V.dim() == 3 && (W.dim() == 2 || W.dim() == 3) && c.dim() == 1, "pyar: V has shape ", shape_text(V),
                    ", W ", shape_text(W), " and c ", shape_text(c),
                    ", expected [D, P, F], [D, K-1, H] or [D, H], and [H]");
    const int64_t D = V.size(0), P = V.size(1), H = c.size(0);
    const int64_t K = P == 1 ? 2 : P;
    const bool scalar = W.dim() == 2;
    STD_TORCH_CHECK(K <= 256 && P >= 1, "pyar: K must be 2 to 256, V has shape ", shape_text(V));
    STD_TORCH_CHECK(H >= 1 && H <= 4096, "pyar: the CUDA kernels need 1 to 4096 hidden units, got ", H);
    STD_TORCH_CHECK(D <= int64_t{65535} * kBlockDims, "pyar: the CUDA kernels need at most ",
                    int64_t{65535} * kBlockDims, " dimensions, got ", D);
    STD_TORCH_CHECK(mlp_.size() % 2 == 0 && mlp_.size() <= 2 * kMostAddedLayers,
                    "pyar: mlp must hold a weight and a bias of each of at most ", kMostAddedLayers,
                    " added layers, got ", mlp_.size(), " tensors");
    int64_t F = H;
    widest = static_cast<int>(H);
    for (size_t i = 0; i < mlp_.size(); i += 2) {
      check_tensor(mlp_[i], "mlp weight", ScalarType::Float, {-1, F}, V);
      F = mlp_[i].size(0);
      STD_TORCH_CHECK(F >= 1 && F <= 4096, "pyar: the CUDA kernels need 1 to 4096 units in an added layer, got ", F);
      check_tensor(mlp_[i + 1], "mlp bias", ScalarType::Float, {F}, V);
      mlp.push_back(dense(mlp_[i]));
      mlp.push_back(dense(mlp_[i + 1]));
      widest = std::max(widest, static_cast<int>(F));
    }
    check_tensor(V, "V", ScalarType::Float, {D, P, F}, V);
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
    output = nade;
    output.H = static_cast<int>(F);
    output.vector = mlp.empty() ? nade.vector : F % 4 == 0 && aligned_16(nade.V);
  }

  int64_t blocks() const { return ceil_div(nade.D, kBlockDims); }
  // Elements of V's rows that a lane has, and warps of a unit: functions of F alone, because they set the order of the
  // sums.
  int per_lane() const { return output.H <= 4 * kWarp ? 4 : 16; }
  int groups() const { return static_cast<int>(ceil_div(output.H, kWarp * per_lane())); }
  int64_t width() const { return static_cast<int64_t>(groups()) * kWarp * per_lane(); }

  int num_layers() const { return static_cast<int>(mlp.size() / 2); }
  // Rows of layer `level`'s output, of h for level 0.
  int units(int level) const { return level == 0 ? nade.H : static_cast<int>(mlp[2 * level - 2].size(0)); }
  // Floats that a row of activations takes, of h and of all layers; none without layers, where no such rows exist.
  int64_t row_floats() const {
    int64_t floats = 0;
    for (int level = 0; num_layers() > 0 && level <= num_layers(); ++level) floats += units(level);
    return floats;
  }
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
  const float* features = nullptr;  // of so many blocks from first_block on
  int first_block = 0;
  int64_t feature_blocks = 0;
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

// Samples of a slab, if each needs so many floats of workspace.
int64_t slab_samples(int64_t floats, int64_t N) {
  return std::min(N, std::clamp<int64_t>(kSlabBytes / (4 * std::max<int64_t>(floats, 1)) / 32 * 32, 32, 32768));
}

// Whether the samples alone fill the GPU; if not, the blocks of dimensions run side by side from their start values.
bool fills(const Parameters& parameters, const Device& device, int64_t N) {
  return N * parameters.groups() >= int64_t{32} * device.multiprocessors();
}

// store(i, j, J, Σ_k X(i, k) Y(j, k)) for i < I, j < J.
template <typename Store>
void launch_product(const Device& device, const Strided& X, const Strided& Y, int64_t I, int64_t J, int64_t K,
                    const Store& store) {
  const LaunchShape shape = {
      dim3(static_cast<unsigned>(ceil_div(I, kPanel)), static_cast<unsigned>(ceil_div(J, kPanel))),
      dim3(kProductThreads), static_cast<int64_t>(sizeof(float)) * 2 * kPanelInputs * kPanelRow};
  launch("nade_product", nade_product_kernel<Store>, shape, device, X, Y, I, J, K, store);
}

void launch_sum_samples(const Device& device, const float* value, int64_t N, int H, float* sum, bool fresh) {
  const LaunchShape shape = {dim3(static_cast<unsigned>(ceil_div(H, kWarp))), dim3(kBackwardWarps * kWarp),
                             4 * kBackwardWarps * kWarp};
  launch("nade_sum_samples", nade_sum_samples_kernel, shape, device, value, N, H, sum, fresh);
}

// Activations of h and every added layer, for `count` samples and a few blocks of dimensions at a time.
class LayerRows {
 public:
  // Rows for `slab` samples and so many blocks of dimensions as leave room for `row_floats` a row.
  LayerRows(const Parameters& parameters, const Tensor& like, int64_t slab, int64_t row_floats)
      : parameters_(parameters),
        most_blocks_(std::clamp<int64_t>(kSlabBytes / std::max<int64_t>(4 * slab * kBlockDims * row_floats, 1), 1,
                                         parameters.blocks())) {
    for (int level = 0; level <= parameters.num_layers(); ++level) {
      values_.push_back(allocate(like, {most_blocks_ * slab * kBlockDims, parameters.units(level)}, ScalarType::Float));
    }
  }

  int64_t most_blocks() const { return most_blocks_; }
  const float* level(int level) const { return read<float>(values_[level]); }
  const float* features() const { return read<float>(values_.back()); }

  // x [count, D]; starts of all blocks.
  void compute(const Device& device, const uint8_t* x, int64_t count, const float* starts, int64_t first_block,
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

 private:
  const Parameters& parameters_;
  int64_t most_blocks_;
  std::vector<Tensor> values_;
};

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
}  // namespace pyar::cuda

STABLE_TORCH_LIBRARY_IMPL(pyar, PYAR_DISPATCH_KEY, m) {
  m.impl("nade_log_prob", TORCH_BOX(&pyar::cuda::nade_log_prob));
  m.impl("nade_log_prob_backward", TORCH_BOX(&pyar::cuda::nade_log_prob_backward));
  m.impl("nade_logits", TORCH_BOX(&pyar::cuda::nade_logits));
  m.impl("nade_logits_backward", TORCH_BOX(&pyar::cuda::nade_logits_backward));
  m.impl("nade_mean_nll", TORCH_BOX(&pyar::cuda::nade_mean_nll));
  m.impl("nade_sample", TORCH_BOX(&pyar::cuda::nade_sample));
}
