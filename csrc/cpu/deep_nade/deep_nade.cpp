// DeepNADE on the CPU: checks, memory, threads. The loops are in *_kernel.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <tuple>

#include "cpu/deep_nade/kernel.h"
#include "cpu/dispatch.h"
#include "cpu/host.h"
#include "cpu/team.h"

namespace pyar::cpu {
namespace {

constexpr int64_t kWorthAPiece = 1 << 19;  // multiply-adds

// The parameters, the layers behind the first one packed.
class Model {
 public:
  Model(Crew& crew, const Tensor& W, const Tensor& U, const Tensor& c, const std::vector<Tensor>& hidden,
        const Tensor& V, const Tensor& b, int64_t activation) {
    STD_TORCH_CHECK(c.dim() == 1 && V.dim() == 3, "c must be [H] and V [D, P, H], got ", shape_text(shape_of(c)),
                    " and ", shape_text(shape_of(V)));
    STD_TORCH_CHECK(hidden.size() % 2 == 0, "hidden must hold a weight and a bias for every layer, got ", hidden.size(),
                    " tensors");
    const int64_t D = V.size(0), P = V.size(1), K = P == 1 ? 2 : P, H = c.size(0);
    STD_TORCH_CHECK(D >= 1 && H >= 1 && P >= 1 && K <= 256,
                    "D and H must be at least 1, and the number of states between 2 and 256, got D=", D, ", H=", H,
                    ", K=", K);
    STD_TORCH_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Activation::tanh),
                    "activation must be 0 ... 2, got ", activation);
    int64_t units = H;
    for (size_t l = 0; l < hidden.size(); l += 2) {
      STD_TORCH_CHECK(hidden[l].dim() == 2 && hidden[l].size(0) >= 1, "hidden weights must be [H, inputs], got ",
                      shape_text(shape_of(hidden[l])));
      const int64_t next = hidden[l].size(0);
      layers_.push_back({parameters_.keep(hidden[l], "hidden weight", {next, units}),
                         parameters_.keep(hidden[l + 1], "hidden bias", {next}), units, next, nullptr, true});
      units = next;
    }
    view_.W = parameters_.keep(W, "W", {D, K - 1, H});
    view_.U = parameters_.keep(U, "U", {D, H});
    view_.c = parameters_.keep(c, "c", {H});
    view_.V = parameters_.keep(V, "V", {D, P, units});
    view_.b = parameters_.keep(b, "b", {D, P});
    view_.D = D;
    view_.K = K;
    view_.P = P;
    view_.H = H;
    view_.F = units;
    view_.activation = static_cast<Activation>(activation);
    pack(crew);
    view_.layers = layers_.data();
    view_.num_layers = static_cast<int64_t>(layers_.size());
  }
  Model(const Model&) = delete;

  const DeepNadeParameters& view() const { return view_; }

  // Multiply-adds a step.
  int64_t work() const {
    int64_t total = view_.H + view_.P * view_.F;
    for (const DeepNadeLayer& layer : layers_) total += layer.inputs * layer.units;
    return total;
  }

 private:
  void pack(Crew& crew) {
    const auto pack = PYAR_FOR_THIS_CPU(deep_nade_pack);
    for (DeepNadeLayer& layer : layers_) {
      packed_.push_back(
          std::make_unique<WorkSpace>(PYAR_FOR_THIS_CPU(deep_nade_packed_floats)(layer.inputs, layer.units)));
      float* const packed = packed_.back()->data();
      const int64_t panels = PYAR_FOR_THIS_CPU(deep_nade_panels)(layer.units);
      const int64_t pieces = std::clamp<int64_t>(layer.inputs * layer.units / (kWorthAPiece / 16), 1, panels);
      std::atomic<bool> finite{true};
      crew.share(pieces, [&](int64_t piece, int64_t) {
        if (!pack(layer, panels * piece / pieces, panels * (piece + 1) / pieces, packed)) finite = false;
      });
      layer.packed = packed;
      layer.finite = finite;
    }
  }

  Parameters parameters_;
  std::vector<DeepNadeLayer> layers_;
  std::vector<std::unique_ptr<WorkSpace>> packed_;
  DeepNadeParameters view_{};
};

// The walks of an operation; keeps contiguous copies alive.
class Walks {
 public:
  // All steps of every walk.
  Walks(const Tensor& x, const Tensor& order, const DeepNadeParameters& m) {
    STD_TORCH_CHECK(x.dim() == 2, "x must be [R, ", m.D, "], got ", shape_text(shape_of(x)));
    count = x.size(0);
    x_ = checked_states(x, "x", count, m.D, m.K);
    order_ = checked_integers(order, "order", {count, m.D}, m.D);
    ends_.assign(count, m.D);
    begins_.assign(count, 0);
    view = {bytes(x_), integers(order_), begins_.data(), ends_.data()};
  }

  // Steps begin … end−1 of every walk.
  Walks(const Tensor& x, const Tensor& order, const Tensor& begin, const Tensor& end, const DeepNadeParameters& m)
      : Walks(x, order, m) {
    const Tensor first = checked_integers(begin, "begin", {count}, m.D + 1);
    const Tensor last = checked_integers(end, "end", {count}, m.D + 1);
    for (int64_t r = 0; r < count; ++r) {
      begins_[r] = integers(first)[r];
      ends_[r] = integers(last)[r];
      STD_TORCH_CHECK(begins_[r] <= ends_[r], "begin must not be above end, got ", begins_[r], " and ", ends_[r]);
    }
  }
  Walks(const Walks&) = delete;

  int64_t count = 0;
  DeepNadeWalks view{};

 private:
  Tensor x_, order_;
  std::vector<int64_t> begins_, ends_;
};

void forward(Crew& crew, const Model& model, const Walks& walks, DeepNadeForward q) {
  std::vector<int64_t> blocks(walks.count + 1);
  for (int64_t r = 0; r < walks.count; ++r)
    blocks[r + 1] = blocks[r] + (walks.view.end[r] - walks.view.begin[r] + kDeepNadeRows - 1) / kDeepNadeRows;
  q.model = model.view();
  q.walks = walks.view;
  q.blocks = blocks.data();
  const int64_t all = blocks.back();
  const auto run = PYAR_FOR_THIS_CPU(deep_nade_forward);
  const int64_t size = PYAR_FOR_THIS_CPU(deep_nade_forward_scratch)(q.model);
  // Two pieces a thread, so that one that is late leaves little to wait for. A piece that begins within a walk adds up
  // the steps before it once more.
  const int64_t pieces = std::clamp<int64_t>(all * kDeepNadeRows * model.work() / kWorthAPiece, 1, 2 * crew.size());
  crew.share(pieces, [&](int64_t piece, int64_t) {
    const int64_t begin = all * piece / pieces, end = all * (piece + 1) / pieces;
    if (begin == end) return;
    const WorkSpace space(size);
    run(q, begin, end, space.data());
  });
}

Tensor deep_nade_log_prob(Tensor x, Tensor order, Tensor begin, Tensor end, Tensor W, Tensor U, Tensor c,
                          std::vector<Tensor> hidden, Tensor V, Tensor b, int64_t activation, double temperature) {
  Crew crew;
  const Model model(crew, W, U, c, hidden, V, b, activation);
  const Walks walks(x, order, begin, end, model.view());
  check_temperature(temperature);
  const int64_t D = model.view().D;
  Tensor log_prob = torch::stable::new_empty(b, {walks.count});
  const Tensor terms = torch::stable::new_empty(b, {walks.count, D});
  DeepNadeForward q{};
  q.temperature = static_cast<float>(temperature);
  q.terms = static_cast<float*>(terms.mutable_data_ptr());
  forward(crew, model, walks, q);
  float* const out = static_cast<float*>(log_prob.mutable_data_ptr());
  for (int64_t r = 0; r < walks.count; ++r) {
    double total = 0.0;
    for (int64_t s = walks.view.begin[r]; s < walks.view.end[r]; ++s) total += static_cast<double>(q.terms[r * D + s]);
    out[r] = static_cast<float>(total);
  }
  return log_prob;
}

Tensor deep_nade_path_outputs(Tensor x, Tensor order, Tensor W, Tensor U, Tensor c, std::vector<Tensor> hidden,
                              Tensor V, Tensor b, int64_t activation) {
  Crew crew;
  const Model model(crew, W, U, c, hidden, V, b, activation);
  const Walks walks(x, order, model.view());
  Tensor outputs = torch::stable::new_empty(b, {walks.count, model.view().D, model.view().P});
  DeepNadeForward q{};
  q.outputs = static_cast<float*>(outputs.mutable_data_ptr());
  forward(crew, model, walks, q);
  return outputs;
}

std::tuple<Tensor, Tensor> deep_nade_sample(Tensor x, Tensor order, Tensor begin, Tensor end, Tensor W, Tensor U,
                                            Tensor c, std::vector<Tensor> hidden, Tensor V, Tensor b,
                                            int64_t activation, Tensor seed, Tensor indices, double temperature) {
  Crew crew;
  const Model model(crew, W, U, c, hidden, V, b, activation);
  const Walks walks(x, order, begin, end, model.view());
  check_temperature(temperature);
  const Tensor numbers = checked_integers(indices, "indices", {walks.count}, std::numeric_limits<int64_t>::max());
  Tensor drawn = torch::stable::empty({walks.count, model.view().D}, ScalarType::Byte, std::nullopt, b.device());
  Tensor log_prob = torch::stable::new_empty(b, {walks.count});

  DeepNadeSample q{};
  q.model = model.view();
  q.walks = walks.view;
  q.seed = checked_seed(seed);
  q.indices = integers(numbers);
  q.temperature = static_cast<float>(temperature);
  q.x = static_cast<uint8_t*>(drawn.mutable_data_ptr());
  q.log_prob = static_cast<float*>(log_prob.mutable_data_ptr());

  int64_t steps = 0;
  for (int64_t r = 0; r < walks.count; ++r) steps += q.walks.end[r] - q.walks.begin[r];
  const auto run = PYAR_FOR_THIS_CPU(deep_nade_sample);
  const int64_t size = PYAR_FOR_THIS_CPU(deep_nade_sample_scratch)(q.model);
  std::atomic<bool> good{true};
  const int64_t pieces = std::clamp<int64_t>(steps * model.work() / kWorthAPiece, 1, 2 * crew.size());
  crew.share(pieces, [&](int64_t piece, int64_t) {
    const int64_t first = walks.count * piece / pieces, last = walks.count * (piece + 1) / pieces;
    if (first == last) return;
    const WorkSpace space(size);
    if (!run(q, first, last, space.data())) good = false;
  });
  STD_TORCH_CHECK(good, "a conditional of the model is no distribution: its logits are NaN or infinite");
  return {drawn, log_prob};
}

STABLE_TORCH_LIBRARY_IMPL(pyar, CPU, m) {
  m.impl("deep_nade_log_prob", TORCH_BOX(&deep_nade_log_prob));
  m.impl("deep_nade_path_outputs", TORCH_BOX(&deep_nade_path_outputs));
  m.impl("deep_nade_sample", TORCH_BOX(&deep_nade_sample));
}

}  // namespace
}  // namespace pyar::cpu
