// What PixelLSTM's operations on the CPU share: checked and packed parameters, memory, slices of the batch.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <new>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/large_pages.h"
#include "cpu/lstm/kernel.h"

namespace pyar::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Uninitialised memory whose vectors start at cache lines.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<T*>(std::aligned_alloc(64, std::max<int64_t>(64, (count * sizeof(T) + 63) / 64 * 64)))),
        count_(count) {
    if (data_ == nullptr) throw std::bad_alloc();
    prefer_large_pages(data_.get(), count * static_cast<int64_t>(sizeof(T)));
  }
  T* get() const { return data_.get(); }
  int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(T)); }
  void zero() { std::fill_n(data_.get(), count_, T{}); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t count_;
};

inline void check(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, name, " must be float32");
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(tensor.dim() == static_cast<int64_t>(shape.size()), name, " must have ", shape.size(),
                  " dimensions, got ", tensor.dim());
  int64_t axis = 0;
  for (const int64_t size : shape) {
    STD_TORCH_CHECK(tensor.size(axis) == size, name, " must have size ", size, " along dimension ", axis, ", got ",
                    tensor.size(axis));
    ++axis;
  }
}

inline const float* floats(const Tensor& tensor) { return static_cast<const float*>(tensor.const_data_ptr()); }

struct LstmSizes {
  int64_t layers;
  int64_t states;  // K
  int64_t hidden;  // H
  int64_t inputs;  // I of the first layer
  bool operator==(const LstmSizes&) const = default;
};

// The parameters as torch.nn.LSTM stores them, checked: float32, contiguous, on the CPU, of shapes that fit together.
class LstmTensors {
 public:
  LstmTensors(const std::vector<Tensor>& weights, const Tensor& head_weight, const Tensor& head_bias) {
    STD_TORCH_CHECK(!weights.empty() && weights.size() % 4 == 0 && weights.size() <= 4 * kMaxLayers,
                    "weights must hold weight_ih, weight_hh, bias_ih and bias_hh of 1 to 4 layers, got ",
                    weights.size(), " tensors");
    STD_TORCH_CHECK(head_weight.dim() == 2, "head_weight must have 2 dimensions, got ", head_weight.dim());
    const int64_t states = head_weight.size(0), hidden = head_weight.size(1);
    STD_TORCH_CHECK(states >= 2 && states <= kMaxStates, "head_weight must have 2 to 256 rows, got ", states);
    STD_TORCH_CHECK(hidden >= 1, "head_weight must have at least one column");
    STD_TORCH_CHECK(weights[0].dim() == 2, "weight_ih must have 2 dimensions, got ", weights[0].dim());
    const int64_t inputs = weights[0].size(1);
    STD_TORCH_CHECK(inputs == states || inputs == 1, "the first weight_ih must have ", states, " columns or 1, got ",
                    inputs);
    sizes = {static_cast<int64_t>(weights.size() / 4), states, hidden, inputs};
    for (int64_t layer = 0; layer < sizes.layers; ++layer) {
      const Tensor* four = &weights[4 * layer];
      add(four[0], "weight_ih", {4 * hidden, layer == 0 ? inputs : hidden});
      add(four[1], "weight_hh", {4 * hidden, hidden});
      add(four[2], "bias_ih", {4 * hidden});
      add(four[3], "bias_hh", {4 * hidden});
    }
    add(head_weight, "head_weight", {states, hidden});
    add(head_bias, "head_bias", {states});
  }

  LstmSizes sizes{};
  // weight_ih, weight_hh, bias_ih, bias_hh of every layer in turn, head_weight, head_bias.
  std::vector<Tensor> tensors;

  std::vector<const float*> pointers() const {
    std::vector<const float*> all;
    for (const Tensor& tensor : tensors) all.push_back(floats(tensor));
    return all;
  }

 private:
  void add(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape) {
    check(tensor, name, shape);
    tensors.push_back(torch::stable::contiguous(tensor));
  }
};

// The parameters packed for the kernels; owns the packed memory.
struct PackedLstm {
  const LstmKernels& kernels = PYAR_FOR_THIS_CPU(lstm_kernels);
  LstmModel model{};
  std::vector<Buffer<float>> memory;

  PackedLstm(Crew& crew, const LstmTensors& parameters, bool bfloat16)
      : PackedLstm(crew, parameters.sizes, parameters.pointers(), bfloat16) {}

  // parameters: in the order of LstmTensors.
  PackedLstm(Crew& crew, const LstmSizes& sizes, const std::vector<const float*>& parameters, bool bfloat16) {
    const int64_t width = kernels.width, hidden = sizes.hidden;
    model.layers = static_cast<int>(sizes.layers);
    model.states = static_cast<int>(sizes.states);
    model.hidden = hidden;
    model.blocks = padded_units(hidden) / width;
    model.stride = row_stride(hidden);
    model.bfloat16 = bfloat16;
    for (int layer = 0; layer < model.layers; ++layer) {
      const float* const* four = &parameters[4 * layer];
      pack_layer(crew, layer, {four[0], four[1], four[2], four[3], layer == 0 ? sizes.inputs : hidden});
    }
    const int64_t vectors = (sizes.states + width - 1) / width;
    float* head = allocate(vectors * hidden * width);
    float* padded_bias = allocate(vectors * width);
    kernels.pack_head(parameters[4 * model.layers], parameters[4 * model.layers + 1], hidden, model.states, head,
                      padded_bias);
    model.head = head;
    model.head_bias = padded_bias;
  }

  int64_t bytes() const {
    int64_t total = 0;
    for (const Buffer<float>& buffer : memory) total += buffer.bytes();
    return total;
  }

 private:
  float* allocate(int64_t count) { return memory.emplace_back(count).get(); }

  void pack_layer(Crew& crew, int layer, const LstmParameters& parameters) {
    const int num_states = layer == 0 ? model.states : 0;
    const int64_t row = model.blocks * 4 * kernels.width;
    const int64_t matrix = (model.hidden * row + model.bfloat16) / (model.bfloat16 ? 2 : 1);
    float* table = allocate((num_states + 1) * row);
    float* below = layer == 0 ? nullptr : allocate(matrix);
    float* recurrent = allocate(matrix);
    crew.share(model.blocks, [&](int64_t block, int64_t) {
      kernels.pack(parameters, model.hidden, num_states, model.bfloat16, table, below, recurrent, block, block + 1);
    });
    model.layer[layer] = {table, below, recurrent};
  }
};

// The parameters packed: earlier, if all of their bytes are the same as then (cache.cpp).
std::shared_ptr<const PackedLstm> cached_lstm(Crew& crew, const LstmTensors& parameters, bool bfloat16);

// Memory of one thread that works on `count` samples.
struct Scratch {
  Buffer<float> sums, logits;
  Buffer<int32_t> state;
  Buffer<float> uniforms;
  Buffer<double> log_prob;
  Scratch(const PackedLstm& lstm, int64_t count)
      : sums(count * 4 * lstm.kernels.width),
        logits(count * (lstm.model.states + lstm.kernels.width)),
        state(count),
        uniforms(4 * count),
        log_prob(count) {}
  LstmScratch scratch() const { return {sums.get(), logits.get(), state.get(), uniforms.get(), log_prob.get()}; }
};

// Samples of one slice: enough that the weights are read seldom, few enough that h and c stay in the second-level
// cache.
constexpr int64_t kSliceSamples = 96;
// Slices are cut in multiples of this.
constexpr int64_t kSliceUnit = 2;
// Samples a slice, so that `threads` threads have equally many slices.
inline int64_t slice_samples(int64_t samples, int64_t threads) {
  if (samples == 0) return kSliceUnit;
  const int64_t rounds = (samples + threads * kSliceSamples - 1) / (threads * kSliceSamples);
  const int64_t even = (samples + threads * rounds - 1) / (threads * rounds);
  return (even + kSliceUnit - 1) / kSliceUnit * kSliceUnit;
}

}  // namespace pyar::cpu
