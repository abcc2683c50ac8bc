// MADE's log-probability and gradients on the CPU: checks, memory, threads. The loops are in log_prob_kernel.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/host.h"
#include "cpu/large_pages.h"
#include "cpu/made/kernel.h"
#include "cpu/made/model.h"
#include "cpu/team.h"

namespace pyar::cpu {
namespace {

// A call's examples, checked, and the work space that its threads need.
class Examples {
 public:
  Examples(const MadeModel& model, const Tensor& x, double temperature, const std::vector<Tensor>& dropout)
      : work_(model.work()), tile_(PYAR_FOR_THIS_CPU(made_tile_samples)()) {
    const MadeParameters& m = model.view();
    check_temperature(temperature);
    STD_TORCH_CHECK(x.dim() == 2, "x must be [B, D], got ", shape_text(shape_of(x)));
    n_ = x.size(0);
    states_ = checked_states(x, "x", n_, m.D, m.K);
    STD_TORCH_CHECK(dropout.empty() || static_cast<int64_t>(dropout.size()) == m.num_layers,
                    "dropout must hold nothing or a tensor for every hidden layer, got ", dropout.size());
    for (size_t l = 0; l < dropout.size(); ++l)
      factors_.push_back(kept_.keep(dropout[l], "dropout", {n_, m.layers[l].units}));
    query_ = {m, bytes(*states_), n_, static_cast<float>(temperature), factors_.empty() ? nullptr : factors_.data()};
  }
  Examples(const Examples&) = delete;

  const MadeLogProb& query() const { return query_; }
  int64_t size() const { return n_; }
  int64_t tile() const { return tile_; }
  int64_t tiles() const { return (n_ + tile_ - 1) / tile_; }
  // The floats of all blocks; the levels' vectors divide sixteen.
  int64_t block_floats() const { return (n_ + 15) / 16 * 16 * made_rows(query_.model); }
  // Threads that the work is worth.
  int64_t threads() const {
    constexpr int64_t kWorthAThread = 1 << 19;  // multiply-adds
    return std::clamp<int64_t>(n_ * work_ / kWorthAThread, 1, num_threads());
  }

 private:
  int64_t work_, tile_, n_ = 0;
  std::optional<Tensor> states_;
  Parameters kept_;
  std::vector<const float*> factors_;
  MadeLogProb query_{};
};

std::tuple<Tensor, Tensor> made_log_prob(Tensor x, Tensor W, Tensor c, std::vector<Tensor> hidden, Tensor V, Tensor b,
                                         std::optional<Tensor> A, int64_t activation, double temperature,
                                         std::vector<Tensor> dropout, bool keep) {
  const MadeModel model(W, c, hidden, V, b, A, activation);
  const Examples examples(model, x, temperature, dropout);
  Tensor log_prob = torch::stable::new_empty(b, {examples.size()});
  Tensor kept = torch::stable::new_empty(b, {keep ? examples.block_floats() : 0});
  prefer_large_pages(kept.mutable_data_ptr(), kept.numel() * 4);
  if (examples.size() == 0) return {log_prob, kept};

  float *values = static_cast<float*>(kept.mutable_data_ptr()), *out = static_cast<float*>(log_prob.mutable_data_ptr());
  const int64_t rows = made_rows(model.view()), block = examples.tile() * rows;
  const int64_t scratch = PYAR_FOR_THIS_CPU(made_log_prob_scratch)(model.view());
  const auto run = PYAR_FOR_THIS_CPU(made_log_prob);
  Crew crew(examples.threads());
  const WorkSpace space(crew.size() * (scratch + (keep ? 0 : block)));
  crew.share(examples.tiles(), [&](int64_t tile, int64_t seat) {
    float* own = space.data() + seat * (scratch + (keep ? 0 : block));
    run(examples.query(), tile, keep ? values + tile * block : own + scratch, out, own);
  });
  return {log_prob, kept};
}

// For every row of W, a state above 0 of a dimension, the examples that have it, in ascending order.
struct Users {
  std::vector<int32_t> begin, users;

  Users(const MadeParameters& m, const uint8_t* x, int64_t n) : begin(m.D * (m.K - 1) + 1), users(n * m.D + 1) {
    int32_t end = 0;
    std::vector<int32_t> next(m.K);
    for (int64_t d = 0; d < m.D; ++d) {
      int32_t* first = begin.data() + d * (m.K - 1);
      if (m.K == 2) {  // without a branch: what has state 0 is overwritten
        first[0] = end;
        for (int64_t i = 0; i < n; ++i) {
          users[end] = static_cast<int32_t>(i);
          end += x[i * m.D + d];
        }
        continue;
      }
      std::fill(next.begin(), next.end(), 0);
      for (int64_t i = 0; i < n; ++i) ++next[x[i * m.D + d]];
      for (int64_t k = 1; k < m.K; ++k) {
        first[k - 1] = end;
        end += next[k];
        next[k] = first[k - 1];
      }
      for (int64_t i = 0; i < n; ++i) {
        const uint8_t k = x[i * m.D + d];
        if (k > 0) users[next[k]++] = static_cast<int32_t>(i);
      }
    }
    begin.back() = end;
  }
};

std::vector<Tensor> made_log_prob_backward(Tensor grad, Tensor x, Tensor W, Tensor c, std::vector<Tensor> hidden,
                                           Tensor V, Tensor b, std::optional<Tensor> A, int64_t activation,
                                           double temperature, std::vector<Tensor> dropout, Tensor kept) {
  const MadeModel model(W, c, hidden, V, b, A, activation);
  const MadeParameters& m = model.view();
  const Examples examples(model, x, temperature, dropout);
  const int64_t n = examples.size();
  STD_TORCH_CHECK(n <= std::numeric_limits<int32_t>::max() / m.D, "B D must be below 2**31, got B=", n, ", D=", m.D);
  Parameters inputs;
  const float* values = inputs.keep(kept, "kept", {examples.block_floats()});

  std::vector<Tensor> gradients = {W, c};
  gradients.insert(gradients.end(), hidden.begin(), hidden.end());
  gradients.insert(gradients.end(), {V, b});
  if (A.has_value()) gradients.push_back(*A);
  std::vector<float*> out;
  for (Tensor& gradient : gradients) {
    gradient = torch::stable::new_empty(gradient, shape_of(gradient));
    prefer_large_pages(gradient.mutable_data_ptr(), gradient.numel() * 4);
    out.push_back(static_cast<float*>(gradient.mutable_data_ptr()));
  }
  std::vector<float*> weights, biases;
  for (size_t l = 0; l < hidden.size(); l += 2) {
    weights.push_back(out[2 + l]);
    biases.push_back(out[3 + l]);
  }
  const Users users = m.scalar_input ? Users(m, nullptr, 0) : Users(m, examples.query().x, n);
  const int64_t columns = PYAR_FOR_THIS_CPU(made_columns)(m, n);
  const WorkSpace deltas(examples.block_floats() + columns);

  MadeGradient g{};
  g.forward = examples.query();
  g.grad = inputs.keep(grad, "grad", {n});
  g.values = values;
  g.deltas = deltas.data();
  g.columns = deltas.data() + examples.block_floats();
  g.begin = users.begin.data();
  g.users = users.users.data();
  g.W = out[0];
  g.c = out[1];
  g.weights = weights.data();
  g.biases = biases.data();
  g.V = out[2 + hidden.size()];
  g.b = out[3 + hidden.size()];
  g.A = A.has_value() ? out.back() : nullptr;

  const auto go_backward = PYAR_FOR_THIS_CPU(made_deltas);
  const auto sum_up = PYAR_FOR_THIS_CPU(made_gradient);
  Crew crew(examples.threads());
  crew.share(examples.tiles(), [&](int64_t tile, int64_t) { go_backward(g, tile); });
  crew.share(PYAR_FOR_THIS_CPU(made_gradient_pieces)(m), [&](int64_t piece, int64_t) { sum_up(g, piece); });
  return gradients;
}

STABLE_TORCH_LIBRARY_IMPL(pyar, CPU, m) {
  m.impl("made_log_prob", TORCH_BOX(&made_log_prob));
  m.impl("made_log_prob_backward", TORCH_BOX(&made_log_prob_backward));
}

}  // namespace
}  // namespace pyar::cpu
