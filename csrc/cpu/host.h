// What operations on the CPU share on their way from tensors to kernels: checks, pointers, work space, threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

namespace pyar::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

inline std::vector<int64_t> shape_of(const Tensor& t) {
  std::vector<int64_t> shape(t.dim());
  for (int64_t i = 0; i < t.dim(); ++i) shape[i] = t.size(i);
  return shape;
}

// The tensor, contiguous, after checking its device, dtype and shape.
inline Tensor checked(const Tensor& t, const char* name, ScalarType type, const char* type_name,
                      const std::vector<int64_t>& shape) {
  STD_TORCH_CHECK(t.is_cpu(), name, " must be a CPU tensor");
  STD_TORCH_CHECK(t.scalar_type() == type, name, " must be ", type_name);
  STD_TORCH_CHECK(shape_of(t) == shape, name, " must be ", shape_text(shape), ", got ", shape_text(shape_of(t)));
  return torch::stable::contiguous(t);
}

inline const uint8_t* bytes(const Tensor& t) { return static_cast<const uint8_t*>(t.const_data_ptr()); }
inline const int64_t* integers(const Tensor& t) { return static_cast<const int64_t*>(t.const_data_ptr()); }

// States uint8 [rows, columns] below K, contiguous.
inline Tensor checked_states(const Tensor& x, const char* name, int64_t rows, int64_t columns, int64_t K) {
  Tensor states = checked(x, name, ScalarType::Byte, "uint8", {rows, columns});
  const uint8_t* p = bytes(states);
  uint8_t highest = 0;
  for (int64_t i = 0; i < rows * columns; ++i) highest = p[i] > highest ? p[i] : highest;
  STD_TORCH_CHECK(highest < K, name, " must hold states 0 ... ", K - 1, ", got ", static_cast<int>(highest));
  return states;
}

// Integers int64 of that shape in 0 … end−1, contiguous.
inline Tensor checked_integers(const Tensor& t, const char* name, const std::vector<int64_t>& shape, int64_t end) {
  Tensor numbers = checked(t, name, ScalarType::Long, "int64", shape);
  const int64_t* p = integers(numbers);
  for (int64_t i = 0; i < numbers.numel(); ++i)
    STD_TORCH_CHECK(p[i] >= 0 && p[i] < end, name, " must hold 0 ... ", end - 1, ", got ", p[i]);
  return numbers;
}

inline void check_temperature(double temperature) {
  STD_TORCH_CHECK(temperature > 0 && std::isfinite(temperature), "temperature must be positive and finite, got ",
                  temperature);
}

inline uint64_t checked_seed(const Tensor& seed) {
  return static_cast<uint64_t>(*integers(checked(seed, "seed", ScalarType::Long, "int64", {})));
}

// Parameters as the kernels see them; keeps contiguous copies alive.
class Parameters {
 public:
  const float* keep(const Tensor& t, const char* name, const std::vector<int64_t>& shape) {
    tensors_.push_back(checked(t, name, ScalarType::Float, "float32", shape));
    return static_cast<const float*>(tensors_.back().const_data_ptr());
  }

 private:
  std::vector<Tensor> tensors_;
};

// Work space of one thread, aligned to cache lines.
class WorkSpace {
 public:
  explicit WorkSpace(int64_t floats)
      : data_(static_cast<float*>(std::aligned_alloc(64, (floats + 15) / 16 * 16 * sizeof(float)))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~WorkSpace() { std::free(data_); }
  WorkSpace(const WorkSpace&) = delete;
  float* data() const { return data_; }

 private:
  float* data_;
};

}  // namespace pyar::cpu
