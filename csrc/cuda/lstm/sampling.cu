#include <cmath>
#include <utility>

#include "cuda/lstm/sampling.cuh"

namespace pyar::cuda::lstm {
namespace {

constexpr int kMostLayers = 4;

}  // namespace

Sampling::Sampling(std::vector<Tensor> weights_, const Tensor& head_weight_, const Tensor& head_bias_,
                   const Tensor& seed_, int64_t N_, int64_t first_index_, int64_t D_, double temperature_,
                   const std::optional<Tensor>& given_)
    : weights(std::move(weights_)),
      head_weight(dense(head_weight_)),
      head_bias(dense(head_bias_)),
      seed(seed_),
      N(N_),
      first_index(first_index_),
      D(D_),
      temperature(static_cast<float>(temperature_)),
      x(head_weight),
      log_prob(head_weight) {
  STD_TORCH_CHECK(!weights.empty() && weights.size() % 4 == 0 && weights.size() <= 4 * kMostLayers,
                  "pyar: weights must hold 4 tensors for each of 1 to 4 layers, got ", weights.size());
  STD_TORCH_CHECK(head_weight.dim() == 2, "pyar: head_weight has shape ", shape_text(head_weight), ", expected [K, H]");
  const int64_t states = head_weight.size(0), hidden = head_weight.size(1);
  STD_TORCH_CHECK(states >= 2 && states <= 256, "pyar: K must be 2 to 256, got ", states);
  STD_TORCH_CHECK(hidden >= 1 && hidden <= 65536, "pyar: H must be 1 to 65536, got ", hidden);
  STD_TORCH_CHECK(N >= 0 && first_index >= 0, "pyar: num_samples and first_index must not be negative, got ", N,
                  " and ", first_index);
  STD_TORCH_CHECK(D >= 0 && D < (int64_t{1} << 30), "pyar: num_dims must be 0 to 2^30, got ", D);
  STD_TORCH_CHECK(temperature_ > 0 && std::isfinite(temperature_),
                  "pyar: temperature must be positive and finite, got ", temperature_);
  K = static_cast<int>(states);
  H = static_cast<int>(hidden);
  layers = static_cast<int>(weights.size() / 4);
  check_tensor(head_weight, "head_weight", ScalarType::Float, {K, H}, head_weight);
  check_tensor(head_bias, "head_bias", ScalarType::Float, {K}, head_weight);
  check_tensor(seed, "seed", ScalarType::Long, {}, head_weight);
  STD_TORCH_CHECK(weights[0].dim() == 2 && (weights[0].size(1) == K || weights[0].size(1) == 1),
                  "pyar: weight_ih_l0 has shape ", shape_text(weights[0]), ", expected [4H, K] or [4H, 1]");
  scalar = weights[0].size(1) == 1;
  for (int layer = 0; layer < layers; ++layer) {
    Tensor* const of = &weights[4 * layer];
    check_tensor(of[0], "weight_ih", ScalarType::Float, {4 * hidden, layer > 0 ? H : of[0].size(1)}, head_weight);
    check_tensor(of[1], "weight_hh", ScalarType::Float, {4 * hidden, H}, head_weight);
    check_tensor(of[2], "bias_ih", ScalarType::Float, {4 * hidden}, head_weight);
    check_tensor(of[3], "bias_hh", ScalarType::Float, {4 * hidden}, head_weight);
    for (int i = 0; i < 4; ++i) of[i] = dense(of[i]);
  }
  if (given_.has_value()) {
    check_tensor(*given_, "given", ScalarType::Byte, {N, -1}, head_weight);
    STD_TORCH_CHECK(given_->size(1) <= D, "pyar: given has shape ", shape_text(*given_), ", more than ", D,
                    " dimensions");
    given = dense(*given_);
  }
  x = allocate(head_weight, {N, D}, ScalarType::Byte);
  log_prob =
      D == 0 ? allocate_zeros(head_weight, {N}, ScalarType::Float) : allocate(head_weight, {N}, ScalarType::Float);
}

}  // namespace pyar::cuda::lstm
