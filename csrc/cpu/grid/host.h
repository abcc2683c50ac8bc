// What the samplers of image models share on their way from tensors to kernels.
#pragma once

#include <limits>
#include <optional>
#include <tuple>

#include "cpu/grid/grid.h"
#include "cpu/host.h"

namespace pyar::cpu {

// The output head from its tensors W [M, F], w [M], E [C(C−1)/2, K, M], V [C, P, M], b [C, P]; mixtures = 0: softmax.
inline GridHead checked_head(Parameters& parameters, const std::vector<Tensor>& head, int64_t num_states,
                             int64_t mixtures) {
  STD_TORCH_CHECK(head.size() == 5, "head must hold W, w, E, V and b, got ", head.size(), " tensors");
  STD_TORCH_CHECK(head[0].dim() == 2 && head[3].dim() == 3, "W must be [M, F] and V [C, P, M], got ",
                  shape_text(shape_of(head[0])), " and ", shape_text(shape_of(head[3])));
  STD_TORCH_CHECK(num_states >= 2 && num_states <= 256 && mixtures >= 0,
                  "num_states must be 2 ... 256 and mixtures not negative, got ", num_states, " and ", mixtures);
  GridHead h{};
  h.M = head[0].size(0);
  h.F = head[0].size(1);
  h.C = head[3].size(0);
  h.K = num_states;
  h.mixtures = mixtures;
  h.P = mixtures > 0 ? 3 * mixtures : num_states == 2 ? 1 : num_states;
  STD_TORCH_CHECK(h.M >= 1 && h.F >= 1 && h.C >= 1, "F, M and C must be at least 1, got ", h.F, ", ", h.M, ", ", h.C);
  h.W = parameters.keep(head[0], "W", {h.M, h.F});
  h.w = parameters.keep(head[1], "w", {h.M});
  h.E = parameters.keep(head[2], "E", {h.C * (h.C - 1) / 2, h.K, h.M});
  h.V = parameters.keep(head[3], "V", {h.C, h.P, h.M});
  h.b = parameters.keep(head[4], "b", {h.C, h.P});
  return h;
}

// What is to be drawn, checked, and the results' memory.
struct GridCall {
  GridSample sample{};

  GridCall(const GridHead& head, int64_t pixels, const Tensor& seed, int64_t num_samples, int64_t first_index,
           double temperature, const std::optional<Tensor>& given, const std::optional<Tensor>& dims,
           const Tensor& like) {
    STD_TORCH_CHECK(num_samples >= 0 && first_index >= 0, "num_samples and first_index must not be negative, got ",
                    num_samples, " and ", first_index);
    check_temperature(temperature);
    const int64_t D = pixels * head.C;
    STD_TORCH_CHECK(D <= std::numeric_limits<int32_t>::max(), "D must be below 2**31, got ", D);
    if (given.has_value()) {
      STD_TORCH_CHECK(given->dim() == 2 && given->size(1) <= D, "given must be [num_samples, G] with G at most ", D,
                      ", got ", shape_text(shape_of(*given)));
      forced_ = checked_states(*given, "given", num_samples, given->size(1), head.K);
    }
    if (dims.has_value()) visited_ = checked_integers(*dims, "dims", {D}, D);
    x_ = torch::stable::empty({num_samples, D}, ScalarType::Byte, std::nullopt, like.device());
    log_prob_ = torch::stable::new_empty(like, {num_samples});
    sample.seed = checked_seed(seed);
    sample.first_index = first_index;
    sample.dims = visited_.has_value() ? integers(*visited_) : nullptr;
    sample.temperature = static_cast<float>(temperature);
    sample.given = forced_.has_value() ? bytes(*forced_) : nullptr;
    sample.num_given = forced_.has_value() ? forced_->size(1) : 0;
    sample.D = D;
    sample.x = static_cast<uint8_t*>(x_->mutable_data_ptr());
    sample.log_prob = static_cast<float*>(log_prob_->mutable_data_ptr());
  }

  std::tuple<Tensor, Tensor> results() const { return {*x_, *log_prob_}; }

 private:
  std::optional<Tensor> forced_, visited_, x_, log_prob_;
};

inline void check_drawn(bool good) {
  STD_TORCH_CHECK(good, "the logits to sample from are NaN or infinite; check the model's parameters");
}

}  // namespace pyar::cpu
