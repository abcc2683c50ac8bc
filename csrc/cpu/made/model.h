// MADE's parameters as the kernels see them: checked tensors, and who sees whom.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <optional>
#include <vector>

#include "cpu/host.h"
#include "cpu/made/kernel.h"

namespace pyar::cpu {

class MadeModel {
 public:
  MadeModel(const Tensor& W, const Tensor& c, const std::vector<Tensor>& hidden, const Tensor& V, const Tensor& b,
            const std::optional<Tensor>& A, int64_t activation) {
    STD_TORCH_CHECK(c.dim() == 1 && V.dim() == 3 && (W.dim() == 2 || W.dim() == 3), "c must be [H], V [D, P, H] and W ",
                    "[D, K-1, H] or [D, H], got ", shape_text(shape_of(c)), ", ", shape_text(shape_of(V)), " and ",
                    shape_text(shape_of(W)));
    STD_TORCH_CHECK(hidden.size() % 2 == 0, "hidden must hold a weight and a bias for every layer, got ", hidden.size(),
                    " tensors");
    const int64_t D = V.size(0), P = V.size(1), K = P == 1 ? 2 : P;
    STD_TORCH_CHECK(D >= 1 && c.size(0) >= 1 && P >= 1 && K <= 256,
                    "D and H must be at least 1, and the number of states between 2 and 256, got D=", D,
                    ", H=", c.size(0), ", K=", K);
    STD_TORCH_CHECK(hidden.size() / 2 < kMostLayers, "at most ", kMostLayers, " hidden layers are possible, got ",
                    hidden.size() / 2 + 1);
    STD_TORCH_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Activation::tanh),
                    "activation must be 0 ... 2, got ", activation);
    STD_TORCH_CHECK(D <= std::numeric_limits<int32_t>::max() / K, "D K must be below 2**31, got D=", D, ", K=", K);
    view_.scalar_input = W.dim() == 2 && K > 2;  // for two states both are one row a dimension
    const auto shape = [&](std::vector<int64_t> after) {
      std::vector<int64_t> all = {D};
      if (W.dim() == 3) all.push_back(K - 1);
      all.insert(all.end(), after.begin(), after.end());
      return all;
    };
    int64_t units = c.size(0);
    layers_.push_back({parameters_.keep(W, "W", shape({units})), parameters_.keep(c, "c", {units}), units, {}, {}});
    for (size_t l = 0; l < hidden.size(); l += 2) {
      STD_TORCH_CHECK(hidden[l].dim() == 2 && hidden[l].size(0) >= 1, "hidden weights must be [H, inputs], got ",
                      shape_text(shape_of(hidden[l])));
      const int64_t next = hidden[l].size(0);
      layers_.push_back({parameters_.keep(hidden[l], "hidden weight", {next, units}),
                         parameters_.keep(hidden[l + 1], "hidden bias", {next}),
                         next,
                         {},
                         {}});
      units = next;
    }
    view_.V = parameters_.keep(V, "V", {D, P, units});
    view_.b = parameters_.keep(b, "b", {D, P});
    view_.A = A.has_value() ? parameters_.keep(*A, "A", shape({D, P})) : nullptr;
    view_.D = D;
    view_.K = K;
    view_.P = P;
    view_.activation = static_cast<Activation>(activation);
    make_staircases();
    view_.layers = layers_.data();
    view_.num_layers = static_cast<int64_t>(layers_.size());
  }
  MadeModel(const MadeModel&) = delete;

  const MadeParameters& view() const { return view_; }

  // Multiply-adds a sample.
  int64_t work() const {
    int64_t total = view_.D * view_.P * layers_.back().units, inputs = view_.D;
    for (const MadeLayer& layer : layers_) {
      total += inputs * layer.units;
      inputs = layer.units;
    }
    return (total + (view_.A == nullptr ? 0 : view_.D * view_.D * view_.P)) / 2;
  }

 private:
  using Table = std::vector<int32_t>;

  // Unit j of H has degree 1 + ⌊j (D−1) / H⌋; a unit of degree m sees dimensions and units up to that degree.
  void make_staircases() {
    const int64_t D = view_.D, P = view_.P, highest = D > 1 ? D - 1 : 1;
    const Table *below_first = nullptr, *below_degree = nullptr;
    for (MadeLayer& layer : layers_) {
      Table& first = table(D + 2);
      Table& degree = table(layer.units);
      for (int64_t m = 2; m <= D + 1; ++m)
        first[m] = m > highest ? layer.units : ((m - 1) * layer.units + highest - 1) / highest;
      for (int64_t m = 1; m <= D; ++m)
        for (int32_t j = first[m]; j < first[m + 1]; ++j) degree[j] = m;
      layer.first = first.data();
      if (below_first == nullptr) {
        layer.seen = {degree.data(), first.data() + 1};
      } else {
        Table &reach = table(layer.units), &start = table(below_degree->size());
        for (int64_t j = 0; j < layer.units; ++j) reach[j] = (*below_first)[degree[j] + 1];
        for (size_t k = 0; k < start.size(); ++k) start[k] = first[(*below_degree)[k]];
        layer.seen = {reach.data(), start.data()};
      }
      below_first = &first;
      below_degree = &degree;
    }
    Table &reach_of_V = table(D * P), &start_of_V = table(below_degree->size());
    Table &reach_of_A = table(D * P), &start_of_A = table(D);
    for (int64_t d = 0; d < D; ++d) {
      for (int64_t p = 0; p < P; ++p) {
        reach_of_V[d * P + p] = (*below_first)[d + 1];
        reach_of_A[d * P + p] = d;
      }
      start_of_A[d] = (d + 1) * P;
    }
    for (size_t k = 0; k < start_of_V.size(); ++k) start_of_V[k] = (*below_degree)[k] * P;
    view_.seen_by_V = {reach_of_V.data(), start_of_V.data()};
    view_.seen_by_A = {reach_of_A.data(), start_of_A.data()};
  }

  // Zeros that stay where they are.
  Table& table(int64_t size) { return tables_.emplace_back(size); }

  Parameters parameters_;
  std::vector<MadeLayer> layers_;
  std::deque<Table> tables_;
  MadeParameters view_{};
};

}  // namespace pyar::cpu
