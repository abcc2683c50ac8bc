// What operations of models for any order share on the host: the network's layers, packed, and how walks are divided
// among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>

#include "cpu/any_order/network.h"
#include "cpu/dispatch.h"
#include "cpu/host.h"
#include "cpu/team.h"

namespace pyar::cpu {

constexpr int64_t kWorthAPiece = 1 << 19;  // multiply-adds

// The layers behind the first one, packed.
class DenseLayers {
 public:
  // Checks and packs them, and sets all of a network but D and P.
  DenseLayers(Crew& crew, Parameters& parameters, const Tensor& c, const std::vector<Tensor>& hidden,
              int64_t activation, Network& network) {
    STD_TORCH_CHECK(c.dim() == 1 && c.size(0) >= 1, "c must be [H], got ", shape_text(shape_of(c)));
    STD_TORCH_CHECK(hidden.size() % 2 == 0, "hidden must hold a weight and a bias for every layer, got ", hidden.size(),
                    " tensors");
    STD_TORCH_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Activation::tanh),
                    "activation must be 0 ... 2, got ", activation);
    int64_t units = c.size(0);
    network.H = units;
    network.c = parameters.keep(c, "c", {units});
    for (size_t l = 0; l < hidden.size(); l += 2) {
      STD_TORCH_CHECK(hidden[l].dim() == 2 && hidden[l].size(0) >= 1, "hidden weights must be [H, inputs], got ",
                      shape_text(shape_of(hidden[l])));
      const int64_t next = hidden[l].size(0);
      layers_.push_back({parameters.keep(hidden[l], "hidden weight", {next, units}),
                         parameters.keep(hidden[l + 1], "hidden bias", {next}), units, next, nullptr, true});
      units = next;
    }
    network.F = units;
    network.activation = static_cast<Activation>(activation);
    pack(crew);
    network.layers = layers_.data();
    network.num_layers = static_cast<int64_t>(layers_.size());
  }
  DenseLayers(const DenseLayers&) = delete;

 private:
  void pack(Crew& crew) {
    const auto pack = PYAR_FOR_THIS_CPU(dense_pack);
    for (HiddenLayer& layer : layers_) {
      packed_.push_back(std::make_unique<WorkSpace>(PYAR_FOR_THIS_CPU(dense_packed_floats)(layer.inputs, layer.units)));
      float* const packed = packed_.back()->data();
      const int64_t panels = PYAR_FOR_THIS_CPU(dense_panels)(layer.units);
      const int64_t pieces = std::clamp<int64_t>(layer.inputs * layer.units / (kWorthAPiece / 16), 1, panels);
      std::atomic<bool> finite{true};
      crew.share(pieces, [&](int64_t piece, int64_t) {
        if (!pack(layer, panels * piece / pieces, panels * (piece + 1) / pieces, packed)) finite = false;
      });
      layer.packed = packed;
      layer.finite = finite;
    }
  }

  std::vector<HiddenLayer> layers_;
  std::vector<std::unique_ptr<WorkSpace>> packed_;
};

// Multiply-adds a step.
inline int64_t work_of_step(const Network& network) {
  int64_t total = network.H + network.P * network.F;
  for (int64_t l = 0; l < network.num_layers; ++l) total += network.layers[l].inputs * network.layers[l].units;
  return total;
}

// Fills q.terms and q.outputs of R walks: run(q, begin, end, scratch) with steps of all walks.
template <class Query, class Run>
void share_steps(Crew& crew, int64_t R, Query& q, Run run, int64_t scratch) {
  std::vector<int64_t> steps(R + 1);
  for (int64_t r = 0; r < R; ++r) steps[r + 1] = steps[r] + q.walks.end[r] - q.walks.begin[r];
  q.steps = steps.data();
  const int64_t all = steps.back();
  // Two pieces a thread, so that one that is late leaves little to wait for. A piece that begins within a walk adds up
  // the steps before it once more.
  const int64_t pieces = std::clamp<int64_t>(all * work_of_step(q.model) / kWorthAPiece, 1, 2 * crew.size());
  crew.share(pieces, [&](int64_t piece, int64_t) {
    const int64_t begin = all * piece / pieces, end = all * (piece + 1) / pieces;
    if (begin == end) return;
    const WorkSpace space(scratch);
    run(q, begin, end, space.data());
  });
}

// Draws R walks: run(q, begin, end, scratch) with walks.
template <class Query, class Run>
void share_samples(Crew& crew, int64_t R, const Query& q, Run run, int64_t scratch) {
  int64_t steps = 0;
  for (int64_t r = 0; r < R; ++r) steps += q.walks.end[r] - q.walks.begin[r];
  std::atomic<bool> good{true};
  const int64_t pieces = std::clamp<int64_t>(steps * work_of_step(q.model) / kWorthAPiece, 1, 2 * crew.size());
  crew.share(pieces, [&](int64_t piece, int64_t) {
    const int64_t first = R * piece / pieces, last = R * (piece + 1) / pieces;
    if (first == last) return;
    const WorkSpace space(scratch);
    if (!run(q, first, last, space.data())) good = false;
  });
  STD_TORCH_CHECK(good, "a conditional of the model is no distribution: its logits are NaN or infinite");
}

}  // namespace pyar::cpu
