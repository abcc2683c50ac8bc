#include <algorithm>

#include "cuda/nade/arguments.cuh"
#include "cuda/nade/layers.cuh"

namespace pyar::cuda::nade {

Parameters::Parameters(const Tensor& W_, const Tensor& c_, const Tensor& V_, const Tensor& b_,
                       const std::vector<Tensor>& mlp_)
    : W(dense(W_)), c(dense(c_)), V(dense(V_)), b(dense(b_)) {
  STD_TORCH_CHECK(V.dim() == 3 && (W.dim() == 2 || W.dim() == 3) && c.dim() == 1, "pyar: V has shape ", shape_text(V),
                  ", W ", shape_text(W), " and c ", shape_text(c),
                  ", expected [D, P, F], [D, K-1, H] or [D, H], and [H]");
  const int64_t D = V.size(0), P = V.size(1), H = c.size(0);
  const int64_t K = P == 1 ? 2 : P;
  const bool scalar = W.dim() == 2;
  STD_TORCH_CHECK(K <= 256 && P >= 1, "pyar: K must be 2 to 256, V has shape ", shape_text(V));
  STD_TORCH_CHECK(H >= 1 && H <= 4096, "pyar: the CUDA kernels need 1 to 4096 hidden units, got ", H);
  STD_TORCH_CHECK(D <= int64_t{65535} * kBlockDims, "pyar: the CUDA kernels need at most ", int64_t{65535} * kBlockDims,
                  " dimensions, got ", D);
  STD_TORCH_CHECK(mlp_.size() % 2 == 0 && mlp_.size() <= 2 * kMostAddedLayers,
                  "pyar: mlp must hold a weight and a bias of each of at most ", kMostAddedLayers,
                  " added layers, got ", mlp_.size(), " tensors");
  int64_t F = H;
  widest = static_cast<int>(H);
  for (size_t i = 0; i < mlp_.size(); i += 2) {
    check_tensor(mlp_[i], "mlp weight", ScalarType::Float, {-1, F}, V);
    F = mlp_[i].size(0);
    STD_TORCH_CHECK(F >= 1 && F <= 4096, "pyar: the CUDA kernels need 1 to 4096 units in an added layer, got ", F);
    check_tensor(mlp_[i + 1], "mlp bias", ScalarType::Float, {F}, V);
    mlp.push_back(dense(mlp_[i]));
    mlp.push_back(dense(mlp_[i + 1]));
    widest = std::max(widest, static_cast<int>(F));
  }
  check_tensor(V, "V", ScalarType::Float, {D, P, F}, V);
  if (scalar) {
    check_tensor(W, "W", ScalarType::Float, {D, H}, V);
  } else {
    check_tensor(W, "W", ScalarType::Float, {D, K - 1, H}, V);
  }
  check_tensor(c, "c", ScalarType::Float, {H}, V);
  check_tensor(b, "b", ScalarType::Float, {D, P}, V);
  nade.W = read<float>(W);
  nade.c = read<float>(c);
  nade.V = read<float>(V);
  nade.b = read<float>(b);
  nade.D = static_cast<int>(D);
  nade.H = static_cast<int>(H);
  nade.P = static_cast<int>(P);
  nade.K = static_cast<int>(K);
  nade.R = scalar ? 1 : nade.K - 1;
  nade.scalar = scalar;
  nade.vector = H % 4 == 0 && aligned_16(nade.W) && aligned_16(nade.c) && aligned_16(nade.V);
  output = nade;
  output.H = static_cast<int>(F);
  output.vector = mlp.empty() ? nade.vector : F % 4 == 0 && aligned_16(nade.V);
}

// Shared memory of one warp for its sums and its conditional, in bytes.
int64_t warp_bytes(const Parameters& parameters) {
  const int P = parameters.nade.P, groups = parameters.groups();
  return 4 * (P == 1 ? warp_floats<Bernoulli>(P, groups) : warp_floats<Categorical>(P, groups));
}

Tensor dense_states(const Tensor& x, const char* name, int64_t columns, const Tensor& like) {
  check_tensor(x, name, ScalarType::Byte, {-1, columns}, like);
  return dense(x);
}

}  // namespace pyar::cuda::nade
