// RNADE on the CPU: checks, memory, threads. The loops are in *_kernel.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <tuple>

#include "cpu/dispatch.h"
#include "cpu/host.h"
#include "cpu/rnade/kernel.h"
#include "cpu/team.h"

namespace pyar::cpu {
namespace {

constexpr int64_t kWorthAPiece = 1 << 19;  // multiply-adds
constexpr int64_t kSamples = 16;           // pieces begin at multiples of it: whole vectors on every level

class Model {
 public:
  Model(const Tensor& W, const Tensor& c, const Tensor& rho, const Tensor& V, const Tensor& b, int64_t family,
        int64_t activation, double min_scale) {
    STD_TORCH_CHECK(V.dim() == 3, "V must be [D, 3C, H], got ", shape_text(shape_of(V)));
    const int64_t D = V.size(0), P = V.size(1), H = V.size(2);
    STD_TORCH_CHECK(D >= 1 && H >= 1 && P >= 3 && P % 3 == 0, "V must be [D, 3C, H] and not empty, got ",
                    shape_text(shape_of(V)));
    STD_TORCH_CHECK(family >= 0 && family <= static_cast<int64_t>(Family::laplace), "family must be 0 ... 2, got ",
                    family);
    STD_TORCH_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Activation::tanh),
                    "activation must be 0 ... 2, got ", activation);
    STD_TORCH_CHECK(min_scale >= 0 && std::isfinite(min_scale), "min_scale must not be negative, and finite, got ",
                    min_scale);
    view.W = parameters_.keep(W, "W", {D, H});
    view.c = parameters_.keep(c, "c", {H});
    view.rho = parameters_.keep(rho, "rho", {D});
    view.V = parameters_.keep(V, "V", {D, P, H});
    view.b = parameters_.keep(b, "b", {D, P});
    view.D = D;
    view.H = H;
    view.C = P / 3;
    view.P = P;
    view.family = static_cast<Family>(family);
    view.activation = static_cast<Activation>(activation);
    view.min_scale = static_cast<float>(min_scale);
  }
  Model(const Model&) = delete;

  // Multiply-adds a sample, and as much again for the mixtures.
  int64_t work() const { return view.D * view.P * (view.H + 30); }

  RnadeParameters view{};

 private:
  Parameters parameters_;
};

const float* numbers(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }
float* writable(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

Tensor checked_values(const Tensor& x, const RnadeParameters& m) {
  STD_TORCH_CHECK(x.dim() == 2, "x must be [B, ", m.D, "], got ", shape_text(shape_of(x)));
  return checked(x, "x", ScalarType::Float, "float32", {x.size(0), m.D});
}

// Runs work(begin, end, scratch) on pieces of n samples. Two pieces a thread, so that one that is late leaves little to
// wait for.
template <class Work>
void share_samples(int64_t n, int64_t work_each, int64_t scratch, const Work& work) {
  Crew crew;
  const int64_t groups = (n + kSamples - 1) / kSamples;
  const int64_t pieces = std::clamp<int64_t>(n * work_each / kWorthAPiece, 1, 2 * crew.size());
  crew.share(pieces, [&](int64_t piece, int64_t) {
    const int64_t begin = groups * piece / pieces * kSamples;
    const int64_t end = std::min(n, groups * (piece + 1) / pieces * kSamples);
    if (begin >= end) return;
    const WorkSpace space(scratch);
    work(begin, end, space.data());
  });
}

Tensor forward(const Tensor& x, const Model& model, bool conditional) {
  const RnadeParameters& m = model.view;
  const Tensor values = checked_values(x, m);
  const int64_t B = values.size(0);
  Tensor result =
      torch::stable::new_empty(values, conditional ? std::vector<int64_t>{B, m.D} : std::vector<int64_t>{B});
  RnadeForward q{};
  q.model = m;
  q.x = numbers(values);
  (conditional ? q.conditional : q.log_prob) = writable(result);
  const auto run = PYAR_FOR_THIS_CPU(rnade_forward);
  share_samples(B, model.work(), PYAR_FOR_THIS_CPU(rnade_forward_scratch)(m),
                [&](int64_t begin, int64_t end, float* scratch) { run(q, begin, end, scratch); });
  return result;
}

Tensor rnade_log_prob(Tensor x, Tensor W, Tensor c, Tensor rho, Tensor V, Tensor b, int64_t family, int64_t activation,
                      double min_scale) {
  return forward(x, Model(W, c, rho, V, b, family, activation, min_scale), false);
}

Tensor rnade_conditional_log_prob(Tensor x, Tensor W, Tensor c, Tensor rho, Tensor V, Tensor b, int64_t family,
                                  int64_t activation, double min_scale) {
  return forward(x, Model(W, c, rho, V, b, family, activation, min_scale), true);
}

// Runs work(i) for i < count, which together take so many multiply-adds.
template <class Work>
void share_all(Crew& crew, int64_t count, int64_t all_work, const Work& work) {
  const int64_t pieces = std::clamp<int64_t>(all_work / (kWorthAPiece / 4), 1, count);
  crew.share(pieces, [&](int64_t piece, int64_t seat) {
    for (int64_t i = count * piece / pieces; i < count * (piece + 1) / pieces; ++i) work(i, seat);
  });
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients rnade_log_prob_backward(Tensor grad, Tensor x, Tensor W, Tensor c, Tensor rho, Tensor V, Tensor b,
                                  int64_t family, int64_t activation, double min_scale, bool x_gradient) {
  const Model model(W, c, rho, V, b, family, activation, min_scale);
  const RnadeParameters& m = model.view;
  const Tensor values = checked_values(x, m);
  const int64_t B = values.size(0);
  const bool conditional = grad.dim() == 2;
  const Tensor upstream = checked(grad, "grad", ScalarType::Float, "float32",
                                  conditional ? std::vector<int64_t>{B, m.D} : std::vector<int64_t>{B});
  const auto allocate = [&](std::vector<int64_t> shape) { return torch::stable::new_zeros(b, shape); };
  Gradients result = {allocate(x_gradient ? std::vector<int64_t>{B, m.D} : std::vector<int64_t>{0}),
                      allocate({m.D, m.H}),
                      allocate({m.H}),
                      allocate({m.D}),
                      allocate({m.D, m.P, m.H}),
                      allocate({m.D, m.P})};
  if (B == 0) return result;

  const int64_t parts = (B + kRnadeSubBatch - 1) / kRnadeSubBatch;
  const auto tiles_of = [](int64_t n) { return (n + kRnadeTile - 1) / kRnadeTile; };
  const int64_t most = tiles_of((B + parts - 1) / parts);  // tiles of the largest sub-batch
  RnadeBackward q{};
  q.model = m;
  // As many checkpoints as steps to walk again between two of them.
  q.block = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(m.D))));
  const int64_t blocks = (m.D + q.block - 1) / q.block, tile_floats = PYAR_FOR_THIS_CPU(rnade_tile_floats)(m);
  const int64_t seat_floats = (PYAR_FOR_THIS_CPU(rnade_backward_scratch)(q) + 15) / 16 * 16;
  Crew crew;
  const WorkSpace checkpoints(blocks * most * tile_floats), later(most * tile_floats);
  const WorkSpace partial(most * q.block * rnade_part_floats(m.H, m.P)), seats(crew.size() * seat_floats);
  q.checkpoints = checkpoints.data();
  q.later = later.data();
  q.partial = partial.data();
  q.grad_W = writable(std::get<1>(result));
  q.grad_c = writable(std::get<2>(result));
  q.grad_rho = writable(std::get<3>(result));
  q.grad_V = writable(std::get<4>(result));
  q.grad_b = writable(std::get<5>(result));

  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = B * part / parts;
    q.n = B * (part + 1) / parts - first;
    q.tiles = tiles_of(q.n);
    q.first = part == 0;
    q.x = numbers(values) + first * m.D;
    (conditional ? q.grad_conditional : q.grad_log_prob) = numbers(upstream) + first * (conditional ? m.D : 1);
    q.grad_x = x_gradient ? writable(std::get<0>(result)) + first * m.D : nullptr;
    share_all(crew, q.tiles, q.n * m.D * m.H,
              [&](int64_t tile, int64_t) { PYAR_FOR_THIS_CPU(rnade_checkpoints)(q, tile); });
    for (int64_t d0 = (blocks - 1) * q.block; d0 >= 0; d0 -= q.block) {
      const int64_t steps = std::min(q.block, m.D - d0);
      share_all(crew, q.tiles, 3 * q.n * steps * model.work() / m.D, [&](int64_t tile, int64_t seat) {
        PYAR_FOR_THIS_CPU(rnade_backward_tile)(q, d0, tile, seats.data() + seat * seat_floats);
      });
      share_all(crew, steps, q.tiles * steps * m.P * m.H,
                [&](int64_t step, int64_t) { PYAR_FOR_THIS_CPU(rnade_backward_sums)(q, d0, step, step + 1); });
    }
    PYAR_FOR_THIS_CPU(rnade_backward_end)(q);
  }
  return result;
}

std::tuple<Tensor, Tensor> rnade_sample(Tensor W, Tensor c, Tensor rho, Tensor V, Tensor b, int64_t family,
                                        int64_t activation, double min_scale, Tensor seed, int64_t num_samples,
                                        int64_t first_index, std::optional<Tensor> given, std::optional<Tensor> dims) {
  const Model model(W, c, rho, V, b, family, activation, min_scale);
  const RnadeParameters& m = model.view;
  STD_TORCH_CHECK(num_samples >= 0, "num_samples must not be negative, got ", num_samples);
  STD_TORCH_CHECK(first_index >= 0, "first_index must not be negative, got ", first_index);
  std::optional<Tensor> forced, visited;
  if (given.has_value()) {
    STD_TORCH_CHECK(given->dim() == 2 && given->size(1) <= m.D, "given must be [num_samples, G] with G at most ", m.D,
                    ", got ", shape_text(shape_of(*given)));
    forced = checked(*given, "given", ScalarType::Float, "float32", {num_samples, given->size(1)});
  }
  if (dims.has_value()) visited = checked_integers(*dims, "dims", {m.D}, m.D);
  Tensor x = torch::stable::new_empty(b, {num_samples, m.D});
  Tensor log_prob = torch::stable::new_empty(b, {num_samples});

  RnadeSample q{};
  q.model = m;
  q.seed = checked_seed(seed);
  q.first_index = static_cast<uint64_t>(first_index);
  q.dims = visited.has_value() ? integers(*visited) : nullptr;
  q.given = forced.has_value() ? numbers(*forced) : nullptr;
  q.num_given = forced.has_value() ? forced->size(1) : 0;
  q.x = writable(x);
  q.log_prob = writable(log_prob);
  const auto run = PYAR_FOR_THIS_CPU(rnade_sample);
  std::atomic<bool> good{true};
  share_samples(num_samples, model.work(), PYAR_FOR_THIS_CPU(rnade_sample_scratch)(m),
                [&](int64_t begin, int64_t end, float* scratch) {
                  if (!run(q, begin, end, scratch)) good = false;
                });
  STD_TORCH_CHECK(good, "a conditional of the model is no distribution: its outputs are NaN or infinite");
  return {x, log_prob};
}

STABLE_TORCH_LIBRARY_IMPL(pyar, CPU, m) {
  m.impl("rnade_log_prob", TORCH_BOX(&rnade_log_prob));
  m.impl("rnade_conditional_log_prob", TORCH_BOX(&rnade_conditional_log_prob));
  m.impl("rnade_log_prob_backward", TORCH_BOX(&rnade_log_prob_backward));
  m.impl("rnade_sample", TORCH_BOX(&rnade_sample));
}

}  // namespace
}  // namespace pyar::cpu
