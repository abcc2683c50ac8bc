// The host's side of every kernel: device, stream, launch with its error check, and the checks of arguments.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#ifndef PYAR_DISPATCH_KEY
#define PYAR_DISPATCH_KEY CUDA
#endif

namespace pyar::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check(cudaError_t error, const char* what);

// Makes the tensor's device current for this scope, and knows its stream and its limits.
class Device {
 public:
  explicit Device(const Tensor& tensor);

  cudaStream_t stream() const { return stream_; }
  int multiprocessors() const { return multiprocessors_; }
  // Shared memory that one thread block may ask for, in bytes.
  int64_t shared_limit() const { return shared_limit_; }

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  cudaStream_t stream_ = nullptr;
  int multiprocessors_ = 0;
  int64_t shared_limit_ = 0;
};

struct LaunchShape {
  dim3 grid;
  dim3 block;
  int64_t shared = 0;        // dynamic shared memory, bytes
  bool cooperative = false;  // all thread blocks must be resident at once, or the launch fails
};

// Launches on the device's current stream and raises RuntimeError, naming the kernel, if the launch is refused.
template <typename... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape, const Device& device,
            std::type_identity_t<Parameters>... arguments) {
#if defined(PYAR_EMULATED)
  emulator::launch(shape.grid, shape.block, shape.shared, shape.cooperative, [=] { kernel(arguments...); });
  (void)name, (void)device;
#else
  if (shape.shared > 48 * 1024) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared)),
          name);
  }
  cudaLaunchAttribute cooperative = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared);
  config.stream = device.stream();
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  config.attrs = &cooperative;
  config.numAttrs = shape.cooperative ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
  check(cudaGetLastError(), name);
#endif
}

// "[2, 3]", for messages.
std::string shape_text(const Tensor& tensor);

// RuntimeError unless the tensor has this type and shape (−1: any size) and is on the same device as `like`.
void check_tensor(const Tensor& tensor, const char* name, ScalarType type, std::initializer_list<int64_t> shape,
                  const Tensor& like);

inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

Tensor allocate(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type);
Tensor allocate_zeros(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type);

template <typename T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}

template <typename T>
T* write(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool aligned_16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace pyar::cuda
