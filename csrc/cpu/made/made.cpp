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
#include "cpu/made/model.h"
#include "cpu/team.h"

namespace pyar::cpu {
namespace {

std::tuple<Tensor, Tensor> made_sample(Tensor W, Tensor c, std::vector<Tensor> hidden, Tensor V, Tensor b,
                                       std::optional<Tensor> A, int64_t activation, Tensor seed, Tensor indices,
                                       double temperature, std::optional<Tensor> given, std::optional<Tensor> dims) {
  const MadeModel model(W, c, hidden, V, b, A, activation);
  const MadeParameters& m = model.view();
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
