// Kernels with the mistakes that the emulator is there to find, each behind its number.
#include "cuda/device.cuh"
#include "cuda/launch.cuh"

namespace pyar::cuda {
namespace {

__global__ void faulty_kernel(int64_t which, const float* from, float* to) {
  float* const shared = reinterpret_cast<float*>(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x);
  shared[thread] = static_cast<float>(thread);
  if (which == 0) __syncthreads();  // right: everything else below goes wrong
  if (which == 1 && thread % 2 == 0) __syncthreads();
  if (which == 2) shared[64 + thread / 32] = 1.0f;
  if (which == 3) copy_async_16(shared + 4 * (thread % 16), from + 1);
  if (which == 4) {
    copy_async_4(shared + thread, from + thread);
    copy_async_commit();
    __syncthreads();
  }
  if (which == 5) {
    while (static_cast<volatile float*>(shared)[0] == 0.0f) emulator::yield();
  }
  if (which == 6 && thread < 16) to[thread] = __shfl_xor_sync(kFullWarp, 1.0f, 1);
  to[thread] = shared[(thread + 1) % 64];
}

Tensor faulty(Tensor from, int64_t which) {
  Tensor to = allocate(from, {64}, ScalarType::Float);
  const Device device(from);
  launch("faulty", faulty_kernel, {dim3(1), dim3(64), 4 * 64}, device, which, read<float>(from), write<float>(to));
  return to;
}

}  // namespace
}  // namespace pyar::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(pyar, m) { m.def("faulty(Tensor from, int which) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(pyar, PYAR_DISPATCH_KEY, m) { m.impl("faulty", TORCH_BOX(&pyar::cuda::faulty)); }
