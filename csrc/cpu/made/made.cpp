// MADE's sampling on the CPU: checks, memory, threads. The loops are in sample_kernel.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <tuple>

#include "cpu/dispatch.h"
#include "cpu/host.h"
#include "cpu/made/kernel.h"
#include "cpu/team.h"

namespace pyar::cpu {
namespace {

struct Model {
  Parameters parameters;
  std::vector<MadeLayer> layers;
  MadeParameters view{};

  Model(const Tensor& W, const Tensor& c, const std::vector<Tensor>& hidden, const Tensor& V, const Tensor& b,
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
    STD_TORCH_CHECK(D * (K - 1) <= std::numeric_limits<int32_t>::max(), "D (K-1) must be below 2**31, got ",
                    D * (K - 1));
    view.scalar_input = W.dim() == 2;
    const auto shape = [&](std::vector<int64_t> after) {
      std::vector<int64_t> all = {D};
      if (!view.scalar_input) all.push_back(K - 1);
      all.insert(all.end(), after.begin(), after.end());
      return all;
    };
    int64_t units = c.size(0);
    layers.push_back({parameters.keep(W, "W", shape({units})), parameters.keep(c, "c", {units}), units});
    for (size_t l = 0; l < hidden.size(); l += 2) {
      STD_TORCH_CHECK(hidden[l].dim() == 2 && hidden[l].size(0) >= 1, "hidden weights must be [H, inputs], got ",
                      shape_text(shape_of(hidden[l])));
      const int64_t next = hidden[l].size(0);
      layers.push_back({parameters.keep(hidden[l], "hidden weight", {next, units}),
                        parameters.keep(hidden[l + 1], "hidden bias", {next}), next});
      units = next;
    }
    view.layers = layers.data();
    view.num_layers = static_cast<int64_t>(layers.size());
    view.V = parameters.keep(V, "V", {D, P, units});
    view.b = parameters.keep(b, "b", {D, P});
    view.A = A.has_value() ? parameters.keep(*A, "A", shape({D, P})) : nullptr;
    view.D = D;
    view.K = K;
    view.P = P;
    view.activation = static_cast<Activation>(activation);
  }
  Model(const Model&) = delete;

  // Multiply-adds a sample.
  int64_t work() const {
    int64_t total = view.D * view.P * layers.back().units, inputs = view.D;
    for (const MadeLayer& layer : layers) {
      total += inputs * layer.units;
      inputs = layer.units;
    }
    return (total + (view.A == nullptr ? 0 : view.D * view.D * view.P)) / 2;
  }
};

std::tuple<Tensor, Tensor> made_sample(Tensor W, Tensor c, std::vector<Tensor> hidden, Tensor V, Tensor b,
                                       std::optional<Tensor> A, int64_t activation, Tensor seed, Tensor indices,
                                       double temperature, std::optional<Tensor> given, std::optional<Tensor> dims) {
  const Model model(W, c, hidden, V, b, A, activation);
  const MadeParameters& m = model.view;
  check_temperature(temperature);
  STD_TORCH_CHECK(indices.dim() == 1, "indices must be [num_samples], got ", shape_text(shape_of(indices)));
  const int64_t n = indices.size(0);
  const Tensor numbers = checked_integers(indices, "indices", {n}, std::numeric_limits<int64_t>::max());
  std::optional<Tensor> forced, visited;
  if (given.has_value()) {
    STD_TORCH_CHECK(given->dim() == 2 && given->size(1) <= m.D, "given must be [num_samples, G] with G at most ", m.D,
                    ", got ", shape_text(shape_of(*given)));
    forced = checked_states(*given, "given", n, given->size(1), m.K);
  }
  if (dims.has_value()) visited = checked_integers(*dims, "dims", {m.D}, m.D);
  Tensor x = torch::stable::empty({n, m.D}, ScalarType::Byte, std::nullopt, b.device());
  Tensor log_prob = torch::stable::new_empty(b, {n});

  MadeSample q{};
  q.model = m;
  q.seed = checked_seed(seed);
  q.indices = integers(numbers);
  q.dims = visited.has_value() ? integers(*visited) : nullptr;
  q.temperature = static_cast<float>(temperature);
  q.given = forced.has_value() ? bytes(*forced) : nullptr;
  q.num_given = forced.has_value() ? forced->size(1) : 0;
  q.x = static_cast<uint8_t*>(x.mutable_data_ptr());
  q.log_prob = static_cast<float*>(log_prob.mutable_data_ptr());

  constexpr int64_t kWorthAPiece = 1 << 19;  // multiply-adds
  const auto run = PYAR_FOR_THIS_CPU(made_sample);
  const int64_t size = PYAR_FOR_THIS_CPU(made_sample_scratch)(m);
  std::atomic<bool> good{true};
  Crew crew;
  // Two pieces a thread, so that one that is late leaves little to wait for.
  const int64_t pieces = std::clamp<int64_t>(n * (model.work() + 1) / kWorthAPiece, 1, 2 * crew.size());
  crew.share(pieces, [&](int64_t piece, int64_t) {
    const int64_t begin = n * piece / pieces, end = n * (piece + 1) / pieces;
    if (begin == end) return;
    const WorkSpace space(size);
    if (!run(q, begin, end, space.data())) good = false;
  });
  STD_TORCH_CHECK(good, "a conditional of the model is no distribution: its logits are NaN or infinite");
  return {x, log_prob};
}

STABLE_TORCH_LIBRARY_IMPL(pyar, CPU, m) { m.impl("made_sample", TORCH_BOX(&made_sample)); }

}  // namespace
}  // namespace pyar::cpu
