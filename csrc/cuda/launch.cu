#include "cuda/launch.cuh"

#if !defined(PYAR_EMULATED)
#include <dlfcn.h>
#endif

namespace pyar::cuda {

void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "pyar: ", what, " failed on the GPU: ", cudaGetErrorString(error), " (",
                  cudaGetErrorName(error), ")");
}

namespace {

#if !defined(PYAR_EMULATED)
// torch's current stream. The function lives in libtorch_cuda, which a build against the CPU libraries is not linked
// with, so that one build serves both: it is looked up in the library that the process has loaded already.
cudaStream_t current_stream(int32_t device_index) {
  using GetStream = AOTITorchError (*)(int32_t, void**);
  static const GetStream get_stream = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = dlsym(library != nullptr ? library : RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream");
    STD_TORCH_CHECK(symbol != nullptr,
                    "pyar: a CUDA tensor came, but this process has not loaded libtorch_cuda.so with "
                    "aoti_torch_get_current_cuda_stream in it");
    return reinterpret_cast<GetStream>(symbol);
  }();
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(get_stream(device_index, &stream));
  return static_cast<cudaStream_t>(stream);
}
#endif

int attribute(cudaDeviceAttr which, int device_index) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device_index), "reading the device's limits");
  return value;
}

}  // namespace

Device::Device(const Tensor& tensor) {
  int device_index = 0;
#if !defined(PYAR_EMULATED)
  device_index = tensor.get_device_index();
  guard_.emplace(device_index);
  // torch's runtime and the one linked in here each remember a current device.
  check(cudaSetDevice(device_index), "choosing the device");
  stream_ = current_stream(device_index);
#else
  (void)tensor;
#endif
  multiprocessors_ = attribute(cudaDevAttrMultiProcessorCount, device_index);
  shared_limit_ = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device_index);
}

std::string shape_text(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(tensor.size(i));
  return text + "]";
}

void check_tensor(const Tensor& tensor, const char* name, ScalarType type, std::initializer_list<int64_t> shape,
                  const Tensor& like) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, "pyar: ", name, " has the wrong dtype, number ",
                  static_cast<int>(tensor.scalar_type()), " in torch's order instead of ", static_cast<int>(type));
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
  std::string expected = "[";
  int64_t i = 0;
  for (const int64_t size : shape) {
    expected += (i == 0 ? "" : ", ") + (size < 0 ? std::string("*") : std::to_string(size));
    fits = fits && (size < 0 || tensor.size(i) == size);
    ++i;
  }
  STD_TORCH_CHECK(fits, "pyar: ", name, " has shape ", shape_text(tensor), ", expected ", expected, "]");
  STD_TORCH_CHECK(tensor.get_device_index() == like.get_device_index() && tensor.is_cpu() == like.is_cpu(),
                  "pyar: ", name, " is on another device than the parameters");
}

Tensor allocate(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  Tensor tensor = torch::stable::new_empty(like, shape, type);
#if defined(PYAR_EMULATED)
  emulator::poison(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
#endif
  return tensor;
}

Tensor allocate_zeros(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::new_zeros(like, shape, type);
}

}  // namespace pyar::cuda
