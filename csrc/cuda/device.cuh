// What the device code of every kernel stands on: warp operations, asynchronous copies, dynamic shared memory.
//
// tests/cuda_emulator runs the same kernels thread by thread on a CPU; PYAR_EMULATED marks the few places where that
// needs another form because the GPU's is written in PTX.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/portable.h"

#define PYAR_DEVICE __device__ __forceinline__

namespace pyar::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

PYAR_DEVICE float not_a_number() { return __int_as_float(0x7fc00000); }

// The dynamic shared memory of this thread block, 16-byte aligned.
PYAR_DEVICE unsigned char* dynamic_shared() {
#if defined(PYAR_EMULATED)
  return emulator::dynamic_shared();
#else
  extern __shared__ __align__(16) unsigned char pyar_dynamic_shared[];
  return pyar_dynamic_shared;
#endif
}

// Σ over the warp's lanes: every lane gets the sum of pairs at distance 16, 8, 4, 2, 1, the same bits in each.
PYAR_DEVICE float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset >= 1; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

PYAR_DEVICE float warp_max(float value) {
#pragma unroll
  for (int offset = 16; offset >= 1; offset /= 2) value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, offset));
  return value;
}

// Eight sums over the lanes at once, with 9 shuffles: sum k ends in lanes 4 k … 4 k + 3, in the bits that
// warp_sum(value[k]) would have. Destroys value.
PYAR_DEVICE float warp_sum_8(float (&value)[8], int lane) {
#pragma unroll
  for (int kept = 4; kept >= 1; kept /= 2) {
    const int offset = 4 * kept;  // 16, 8, 4
    const bool upper = (lane & offset) != 0;
#pragma unroll
    for (int i = 0; i < kept; ++i) {
      const float mine = upper ? value[i + kept] : value[i];
      const float theirs = upper ? value[i] : value[i + kept];
      value[i] = mine + __shfl_xor_sync(kFullWarp, theirs, offset);
    }
  }
  value[0] += __shfl_xor_sync(kFullWarp, value[0], 2);
  value[0] += __shfl_xor_sync(kFullWarp, value[0], 1);
  return value[0];
}

// kTile values that lie together, 4 kTile-byte aligned, into registers.
template <int kTile>
PYAR_DEVICE void load_tile(const float* from, float (&to)[kTile]) {
  if constexpr (kTile == 1) {
    to[0] = from[0];
  } else {
#pragma unroll
    for (int s = 0; s < kTile; s += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + s);
      to[s] = four.x, to[s + 1] = four.y, to[s + 2] = four.z, to[s + 3] = four.w;
    }
  }
}

// Copies to shared memory that run in the background: 16 bytes (both addresses 16-byte aligned) or 4.
PYAR_DEVICE void copy_async_16(float* shared, const float* global) {
#if defined(PYAR_EMULATED)
  emulator::copy_async(shared, global, 16);
#else
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#endif
}

PYAR_DEVICE void copy_async_4(float* shared, const float* global) {
#if defined(PYAR_EMULATED)
  emulator::copy_async(shared, global, 4);
#else
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(global) : "memory");
#endif
}

// Closes the group of this thread's copies since the last call.
PYAR_DEVICE void copy_async_commit() {
#if defined(PYAR_EMULATED)
  emulator::copy_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most kPending of this thread's latest groups are under way. Other threads' copies need a barrier too.
template <int kPending>
PYAR_DEVICE void copy_async_wait() {
#if defined(PYAR_EMULATED)
  emulator::copy_async_wait(kPending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// D [16, 8] = A [16, 16] B [16, 8] + D on the tensor cores: bfloat16 products, which are exact, in float sums. Each
// lane has the parts of the matrices that PTX calls its fragments, two elements a register, the first in the lower
// half.
PYAR_DEVICE void multiply_add_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(PYAR_EMULATED)
  emulator::mma_16x8x16(d, a, b, __LINE__);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace pyar::cuda
