// DeepNADE on the CPU: checks, memory, threads. The loops are in *_kernel.cpp.
#include "cpu/any_order/deep_nade.h"

#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>

#include "cpu/any_order/host.h"

namespace pyar::cpu {
namespace {

class Model {
 public:
  Model(Crew& crew, const Tensor& W, const Tensor& U, const Tensor& c, const std::vector<Tensor>& hidden,
        const Tensor& V, const Tensor& b, int64_t activation)
      : layers_(crew, parameters_, c, hidden, activation, view_) {
    STD_TORCH_CHECK(V.dim() == 3, "V must be [D, P, H], got ", shape_text(shape_of(V)));
    const int64_t D = V.size(0), P = V.size(1), K = P == 1 ? 2 : P;
    STD_TORCH_CHECK(D >= 1 && P >= 1 && K <= 256,
                    "D must be at least 1, and the number of states between 2 and 256, got D=", D, ", K=", K);
    view_.W = parameters_.keep(W, "W", {D, K - 1, view_.H});
    view_.U = parameters_.keep(U, "U", {D, view_.H});
    view_.V = parameters_.keep(V, "V", {D, P, view_.F});
    view_.b = parameters_.keep(b, "b", {D, P});
    view_.D = D;
    view_.K = K;
    view_.P = P;
  }
  Model(const Model&) = delete;

  const DeepNadeParameters& view() const { return view_; }

 private:
  Parameters parameters_;
  DeepNadeParameters view_{};
  DenseLayers layers_;
};

// The walks of an operation; keeps contiguous copies alive.
class StateWalks {
 public:
  // All steps of every walk.
  StateWalks(const Tensor& x, const Tensor& order, const DeepNadeParameters& m) {
    STD_TORCH_CHECK(x.dim() == 2, "x must be [R, ", m.D, "], got ", shape_text(shape_of(x)));
    count = x.size(0);
    x_ = checked_states(x, "x", count, m.D, m.K);
    order_ = checked_integers(order, "order", {count, m.D}, m.D);
    ends_.assign(count, m.D);
    begins_.assign(count, 0);
    view = {bytes(x_), integers(order_), begins_.data(), ends_.data()};
  }

  // Steps begin … end−1 of every walk.
  StateWalks(const Tensor& x, const Tensor& order, const Tensor& begin, const Tensor& end, const DeepNadeParameters& m)
      : StateWalks(x, order, m) {
    const Tensor first = checked_integers(begin, "begin", {count}, m.D + 1);
    const Tensor last = checked_integers(end, "end", {count}, m.D + 1);
    for (int64_t r = 0; r < count; ++r) {
      begins_[r] = integers(first)[r];
      ends_[r] = integers(last)[r];
      STD_TORCH_CHECK(begins_[r] <= ends_[r], "begin must not be above end, got ", begins_[r], " and ", ends_[r]);
    }
  }
  StateWalks(const StateWalks&) = delete;

  int64_t count = 0;
  Walks<uint8_t> view{};

 private:
  Tensor x_, order_;
  std::vector<int64_t> begins_, ends_;
};

void forward(Crew& crew, const Model& model, const StateWalks& walks, DeepNadeForward q) {
  q.model = model.view();
  q.walks = walks.view;
  share_steps(crew, walks.count, q, PYAR_FOR_THIS_CPU(deep_nade_forward),
              PYAR_FOR_THIS_CPU(deep_nade_forward_scratch)(q.model));
}

// The terms of every walk's steps, added up in double precision: [R, D] → [R].
Tensor sums(const Tensor& terms, const StateWalks& walks) {
  const int64_t D = terms.size(1);
  const float* const each = static_cast<const float*>(terms.const_data_ptr());
  Tensor result = torch::stable::new_empty(terms, {walks.count});
  float* const out = static_cast<float*>(result.mutable_data_ptr());
  for (int64_t r = 0; r < walks.count; ++r) {
    double total = 0.0;
    for (int64_t s = walks.view.begin[r]; s < walks.view.end[r]; ++s)
      total += static_cast<double>(each[r * D + walks.view.order[r * D + s]]);
    out[r] = static_cast<float>(total);
  }
  return result;
}

Tensor deep_nade_log_prob(Tensor x, Tensor order, Tensor begin, Tensor end, Tensor W, Tensor U, Tensor c,
                          std::vector<Tensor> hidden, Tensor V, Tensor b, int64_t activation, double temperature) {
  Crew crew;
  const Model model(crew, W, U, c, hidden, V, b, activation);
  const StateWalks walks(x, order, begin, end, model.view());
  check_temperature(temperature);
  const Tensor terms = torch::stable::new_empty(b, {walks.count, model.view().D});
  DeepNadeForward q{};
  q.temperature = static_cast<float>(temperature);
  q.terms = static_cast<float*>(terms.mutable_data_ptr());
  forward(crew, model, walks, q);
  return sums(terms, walks);
}

Tensor deep_nade_path_outputs(Tensor x, Tensor order, Tensor W, Tensor U, Tensor c, std::vector<Tensor> hidden,
                              Tensor V, Tensor b, int64_t activation) {
  Crew crew;
  const Model model(crew, W, U, c, hidden, V, b, activation);
  const StateWalks walks(x, order, model.view());
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
  const StateWalks walks(x, order, begin, end, model.view());
  check_temperature(temperature);
  const Tensor numbers = checked_integers(indices, "indices", {walks.count}, std::numeric_limits<int64_t>::max());
  const std::vector<int64_t> shape = {walks.count, model.view().D};
  Tensor drawn = torch::stable::empty(shape, ScalarType::Byte, std::nullopt, b.device());
  const Tensor terms = torch::stable::new_empty(b, shape);

  DeepNadeSample q{};
  q.model = model.view();
  q.walks = walks.view;
  q.seed = checked_seed(seed);
  q.indices = integers(numbers);
  q.temperature = static_cast<float>(temperature);
  q.x = static_cast<uint8_t*>(drawn.mutable_data_ptr());
  q.terms = static_cast<float*>(terms.mutable_data_ptr());
  share_samples(crew, walks.count, q, PYAR_FOR_THIS_CPU(deep_nade_sample),
                PYAR_FOR_THIS_CPU(deep_nade_sample_scratch)(q.model));
  return {drawn, sums(terms, walks)};
}

STABLE_TORCH_LIBRARY_IMPL(pyar, CPU, m) {
  m.impl("deep_nade_log_prob", TORCH_BOX(&deep_nade_log_prob));
  m.impl("deep_nade_path_outputs", TORCH_BOX(&deep_nade_path_outputs));
  m.impl("deep_nade_sample", TORCH_BOX(&deep_nade_sample));
}

}  // namespace
}  // namespace pyar::cpu
