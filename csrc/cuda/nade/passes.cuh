// Launches over given states that the values and the gradients share, and the workspace that they take.
//
// Nothing here waits for the GPU, and all memory comes from torch, so that every operation can be captured in a graph.
#pragma once

#include <vector>

#include "cuda/nade/arguments.cuh"
#include "cuda/nade/layers.cuh"

namespace pyar::cuda::nade {

// What the teacher kernel is to compute of `count` samples.
struct Teaching {
  const uint8_t* x;
  int64_t count;
  const float* starts = nullptr;
  const float* features = nullptr;  // of so many blocks from first_block on
  int first_block = 0;
  int64_t feature_blocks = 0;
  const float* upstream = nullptr;
  float weight = 1.0f;
  double* block_log_prob = nullptr;
  float* logits = nullptr;
  float* gradient = nullptr;
};

void launch_starts(const Parameters& parameters, const Device& device, const uint8_t* x, int64_t count, float* starts);

void launch_teacher(const Parameters& parameters, const Device& device, const Teaching& what);

void launch_sum_blocks(const Device& device, const double* block_log_prob, int64_t blocks, int64_t count,
                       float* log_prob, double* exact);

// Samples of a slab, if each needs so many floats of workspace.
int64_t slab_samples(int64_t floats, int64_t N);

// store(i, j, J, Σ_k X(i, k) Y(j, k)) for i < I, j < J.
template <typename Store>
void launch_product(const Device& device, const Strided& X, const Strided& Y, int64_t I, int64_t J, int64_t K,
                    const Store& store) {
  const LaunchShape shape = {
      dim3(static_cast<unsigned>(ceil_div(I, kPanel)), static_cast<unsigned>(ceil_div(J, kPanel))),
      dim3(kProductThreads), static_cast<int64_t>(sizeof(float)) * 2 * kPanelInputs * kPanelRow};
  launch("nade_product", nade_product_kernel<Store>, shape, device, X, Y, I, J, K, store);
}

// Activations of h and every added layer, for `count` samples and a few blocks of dimensions at a time.
class LayerRows {
 public:
  // Rows for `slab` samples and so many blocks of dimensions as leave room for `row_floats` a row.
  LayerRows(const Parameters& parameters, const Tensor& like, int64_t slab, int64_t row_floats);

  int64_t most_blocks() const { return most_blocks_; }
  const float* level(int level) const { return read<float>(values_[level]); }
  const float* features() const { return read<float>(values_.back()); }

  // x [count, D]; starts of all blocks.
  void compute(const Device& device, const uint8_t* x, int64_t count, const float* starts, int64_t first_block,
               int64_t blocks);

 private:
  const Parameters& parameters_;
  int64_t most_blocks_;
  std::vector<Tensor> values_;
};

}  // namespace pyar::cuda::nade
