// The part of CUDA that pyar's kernels use, on a CPU, for machines without a GPU: every GPU thread is a fiber, and the
// kernels in csrc/cuda are compiled as they stand, with this file in the place of the toolkit's cuda_runtime.h.
//
// It is made to find mistakes: fibers run in an order shuffled anew at every turn (PYAR_EMULATOR_SEED), asynchronous
// copies land as late as they may, shared memory and allocations start as NaN, and a launch fails where lanes or
// threads of a block meet at different barriers, where a block exits or waits for ever, where an alignment is wrong or
// where something was written behind a block's shared memory. What it cannot show: the memory model of a real GPU, its
// arithmetic's last bits, its speed.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct alignas(8) float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
inline const char* cudaGetErrorString(cudaError_t) { return "invalid value"; }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorInvalidValue"; }

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};

namespace pyar_emulator_detail {

inline int setting(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoi(value);
}

}  // namespace pyar_emulator_detail

// PYAR_EMULATOR_SMS and _SHARED (bytes) choose the GPU that is emulated.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  using pyar_emulator_detail::setting;
  switch (which) {
    case cudaDevAttrMultiProcessorCount:
      *value = setting("PYAR_EMULATOR_SMS", 4);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = setting("PYAR_EMULATOR_SHARED", 232448);
      break;
  }
  return cudaSuccess;
}

namespace emulator {

struct Copy {
  float* to;
  const float* from;
  int bytes;
};

// A place where a set of fibers wait for each other.
struct Barrier {
  int size = 0, arrived = 0, line = 0;
  unsigned generation = 0;
};

struct Block {
  dim3 index;
  std::vector<unsigned char> storage;
  unsigned char* shared = nullptr;
  int64_t shared_bytes = 0;
  Barrier barrier;
  std::vector<Barrier> warp_barriers;
  std::vector<uint64_t> slots;                   // one per thread, for shuffles
  std::vector<std::vector<uint32_t>> fragments;  // of each warp, for matrix products
};

struct Fiber {
  ucontext_t context;
  dim3 thread;
  int id = 0;
  Block* block = nullptr;
  const unsigned* waits_on = nullptr;
  unsigned waits_value = 0;
  bool done = false;
  std::vector<std::vector<Copy>> copy_groups;
  std::vector<Copy> copies;
};

struct State {
  ucontext_t scheduler;
  Fiber* current = nullptr;
  const std::function<void()>* body = nullptr;
  dim3 grid, block;
  std::string failure;
  uint64_t random = 88172645463325252ull;
  int64_t progress = 0;
};

inline State& state() {
  static State instance;
  return instance;
}

inline unsigned char* dynamic_shared() { return state().current->block->shared; }

inline void poison(void* memory, int64_t bytes) {
  if (bytes > 0) std::memset(memory, 0xff, static_cast<size_t>(bytes));
}

inline void yield() {
  Fiber* const fiber = state().current;
  swapcontext(&fiber->context, &state().scheduler);
}

// Ends the launch with this message; does not return.
[[noreturn]] inline void fail(const std::string& message) {
  State& s = state();
  s.failure = message + " (block " + std::to_string(s.current->block->index.x) + ", " +
              std::to_string(s.current->block->index.y) + ", thread " + std::to_string(s.current->id) + ")";
  for (;;) yield();
}

inline void wait_at(Barrier& barrier, int line, const char* what) {
  if (barrier.arrived > 0 && barrier.line != line) {
    fail(std::string(what) + ": some wait at line " + std::to_string(barrier.line) + ", some at line " +
         std::to_string(line));
  }
  barrier.line = line;
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0;
    ++barrier.generation;
    ++state().progress;
    return;
  }
  Fiber* const fiber = state().current;
  fiber->waits_on = &barrier.generation;
  fiber->waits_value = barrier.generation;
  yield();
}

inline void sync_threads(int line) { wait_at(state().current->block->barrier, line, "__syncthreads"); }

inline Barrier& warp_barrier() {
  Fiber* const fiber = state().current;
  return fiber->block->warp_barriers[fiber->id / 32];
}

inline void sync_warp(int line) { wait_at(warp_barrier(), line, "warp operation"); }

// The 32 values that the lanes of this warp brought.
template <typename T, typename F>
auto exchange(unsigned mask, T value, int line, const F& use) {
  static_assert(sizeof(T) <= 8);
  if (mask != 0xffffffffu) fail("a warp operation names only some lanes");
  Fiber* const fiber = state().current;
  uint64_t* const slots = fiber->block->slots.data() + fiber->id / 32 * 32;
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  slots[fiber->id % 32] = bits;
  sync_warp(line);
  const auto result = use([slots](int lane) {
    T other;
    std::memcpy(&other, &slots[lane], sizeof other);
    return other;
  });
  sync_warp(line);
  return result;
}

template <typename T>
T shuffle(unsigned mask, T value, int source, int line) {
  return exchange(mask, value, line, [&](const auto& of) { return of(source & 31); });
}

template <typename T>
T shuffle_xor(unsigned mask, T value, int distance, int line) {
  return shuffle(mask, value, state().current->id % 32 ^ distance, line);
}

inline unsigned ballot(unsigned mask, bool predicate, int line) {
  return exchange(mask, static_cast<int>(predicate), line, [](const auto& of) {
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= of(lane) != 0 ? 1u << lane : 0u;
    return bits;
  });
}

template <typename T>
unsigned match_any(unsigned mask, T value, int line) {
  return exchange(mask, value, line, [&](const auto& of) {
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= of(lane) == value ? 1u << lane : 0u;
    return bits;
  });
}

// Sixteen products and the number they are added to, as inexactly as tensor cores may have it: aligned to the largest,
// without what lies more than a bit below float's last, added, and rounded towards zero. They document no rounding; this
// form is from Fasi, Higham, Mikaitis & Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science 7
// (2021), https://doi.org/10.7717/peerj-cs.330.
inline float tensor_core_sum(const double (&products)[16], float before) {
  double largest = std::fabs(before);
  for (const double product : products) largest = std::max(largest, std::fabs(product));
  if (largest == 0.0 || !std::isfinite(largest)) {
    double sum = before;
    for (const double product : products) sum += product;
    return static_cast<float>(sum);
  }
  const double quantum = std::ldexp(1.0, std::ilogb(largest) - 24);
  double sum = std::trunc(before / quantum) * quantum;
  for (const double product : products) sum += std::trunc(product / quantum) * quantum;
  const float rounded = static_cast<float>(sum);
  return std::fabs(static_cast<double>(rounded)) > std::fabs(sum) ? std::nextafter(rounded, 0.0f) : rounded;
}

// mma.sync.m16n8k16 of bfloat16 matrices with float sums, D [16, 8] = A [16, 16] B [16, 8] + C [16, 8], with the
// matrices dealt out to the lanes as PTX's "Matrix fragments for mma.m16n8k16" has it. Collective; d holds C, then D.
inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line) {
  Fiber* const fiber = state().current;
  std::vector<uint32_t>& fragments = fiber->block->fragments[fiber->id / 32];  // [32 lanes, 6 registers]
  const int lane = fiber->id % 32;
  for (int i = 0; i < 4; ++i) fragments[6 * lane + i] = a[i];
  for (int i = 0; i < 2; ++i) fragments[6 * lane + 4 + i] = b[i];
  sync_warp(line);
  float A[16][16], B[16][8];
  for (int from = 0; from < 32; ++from) {
    const int group = from >> 2, in_group = from % 4;
    const auto element = [&](int i) {  // two a register, the first in the lower half
      return std::bit_cast<float>(fragments[6 * from + i / 2] >> (i % 2 * 16) << 16);
    };
    for (int i = 0; i < 8; ++i) {
      const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
      const int column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      A[row][column] = element(i);
    }
    for (int i = 0; i < 4; ++i) B[in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group] = element(8 + i);
  }
  for (int i = 0; i < 4; ++i) {
    const int row = i < 2 ? lane >> 2 : (lane >> 2) + 8, column = lane % 4 * 2 + (i & 1);
    double products[16];
    for (int k = 0; k < 16; ++k) products[k] = static_cast<double>(A[row][k]) * B[k][column];
    d[i] = tensor_core_sum(products, d[i]);
  }
  sync_warp(line);
}

inline void copy_async(float* to, const float* from, int bytes) {
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0) {
    fail("a misaligned asynchronous copy");
  }
  const Block& block = *state().current->block;
  const auto* const first = reinterpret_cast<unsigned char*>(to);
  if (first < block.shared || first + bytes > block.shared + block.shared_bytes) {
    fail("an asynchronous copy beyond shared memory");
  }
  state().current->copies.push_back({to, from, bytes});
}

inline void copy_async_commit() {
  Fiber& fiber = *state().current;
  fiber.copy_groups.push_back(std::move(fiber.copies));
  fiber.copies.clear();
}

inline void copy_async_wait(int pending) {
  Fiber& fiber = *state().current;
  while (static_cast<int>(fiber.copy_groups.size()) > pending) {
    for (const Copy& copy : fiber.copy_groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
    fiber.copy_groups.erase(fiber.copy_groups.begin());
  }
}

inline void run_fiber() {
  (*state().body)();
  state().current->done = true;
  ++state().progress;
  for (;;) yield();
}

inline uint64_t next_random() {
  uint64_t& r = state().random;
  r ^= r << 13, r ^= r >> 7, r ^= r << 17;
  return r;
}

constexpr size_t kStack = 128 * 1024;
constexpr int64_t kCanary = 64;

// Runs these blocks together until all their fibers are done.
inline void run_together(const std::vector<Block*>& blocks) {
  State& s = state();
  const int threads = static_cast<int>(s.block.x);
  static std::vector<std::unique_ptr<char[]>> stacks;
  std::vector<std::unique_ptr<Fiber>> fibers;
  for (Block* const block : blocks) {
    for (int id = 0; id < threads; ++id) {
      auto fiber = std::make_unique<Fiber>();
      fiber->block = block;
      fiber->id = id;
      fiber->thread = dim3(static_cast<unsigned>(id), 0, 0);
      if (stacks.size() <= fibers.size()) stacks.emplace_back(new char[kStack]);
      getcontext(&fiber->context);
      fiber->context.uc_stack.ss_sp = stacks[fibers.size()].get();
      fiber->context.uc_stack.ss_size = kStack;
      fiber->context.uc_link = nullptr;
      makecontext(&fiber->context, run_fiber, 0);
      fibers.push_back(std::move(fiber));
    }
  }
  std::vector<Fiber*> order;
  for (const auto& fiber : fibers) order.push_back(fiber.get());
  int64_t idle = 0;
  size_t left = order.size();
  while (left > 0) {
    const int64_t before = s.progress;
    // Warps in shuffled order, and the lanes of each from a random one on.
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[next_random() % i]);
    bool ran = false;
    for (Fiber* const fiber : order) {
      if (fiber->done || (fiber->waits_on != nullptr && *fiber->waits_on == fiber->waits_value)) continue;
      fiber->waits_on = nullptr;
      s.current = fiber;
      ran = true;
      swapcontext(&s.scheduler, &fiber->context);
      if (!s.failure.empty()) {
        const std::string message = std::exchange(s.failure, {});
        throw std::runtime_error("CUDA emulator: " + message);
      }
    }
    idle = s.progress == before ? idle + 1 : 0;
    if (!ran || idle > 100000) throw std::runtime_error("CUDA emulator: the blocks wait for ever");
    std::erase_if(order, [](const Fiber* fiber) { return fiber->done; });
    left = order.size();
  }
  for (const Block* const block : blocks) {
    for (int64_t i = 0; i < kCanary; ++i) {
      if (block->shared[block->shared_bytes + i] != 0xa5) {
        throw std::runtime_error("CUDA emulator: written behind the shared memory of a block");
      }
    }
  }
}

inline void launch(dim3 grid, dim3 block, int64_t shared, bool cooperative, const std::function<void()>& body) {
  int limit = 0, multiprocessors = 0;
  cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0);
  const int64_t count = static_cast<int64_t>(grid.x) * grid.y;
  if (grid.x < 1 || grid.x > 0x7fffffffu || grid.y < 1 || grid.y > 65535 || grid.z != 1 || block.x < 1 ||
      block.x > 1024 || block.x % 32 != 0 || block.y != 1 || block.z != 1 || shared > limit ||
      (cooperative && count > multiprocessors)) {  // of these kernels a multiprocessor may hold no more than one block
    throw std::runtime_error("CUDA emulator: a launch that a GPU refuses");
  }
  State& s = state();
  s.grid = grid;
  s.block = block;
  s.body = &body;
  s.random += 0x9E3779B97F4A7C15ull * static_cast<uint64_t>(pyar_emulator_detail::setting("PYAR_EMULATOR_SEED", 0));
  const int warps = static_cast<int>(block.x) / 32;
  const int64_t together = cooperative ? count : 1;
  for (int64_t first = 0; first < count; first += together) {
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<Block*> pointers;
    for (int64_t i = first; i < first + together; ++i) {
      auto one = std::make_unique<Block>();
      one->index = dim3(static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x), 0);
      one->storage.assign(static_cast<size_t>(shared + kCanary + 128), 0xff);
      one->shared = one->storage.data() + (128 - reinterpret_cast<uintptr_t>(one->storage.data()) % 128);
      one->shared_bytes = shared;
      std::memset(one->shared + shared, 0xa5, kCanary);
      one->barrier.size = static_cast<int>(block.x);
      one->warp_barriers.resize(warps);
      for (Barrier& barrier : one->warp_barriers) barrier.size = 32;
      one->slots.resize(block.x);
      one->fragments.assign(warps, std::vector<uint32_t>(32 * 6));
      pointers.push_back(one.get());
      blocks.push_back(std::move(one));
    }
    run_together(pointers);
  }
}

}  // namespace emulator

#define threadIdx (::emulator::state().current->thread)
#define blockIdx (::emulator::state().current->block->index)
#define blockDim (::emulator::state().block)
#define gridDim (::emulator::state().grid)
#define __syncthreads() ::emulator::sync_threads(__LINE__)
#define __syncwarp() ::emulator::sync_warp(__LINE__)
#define __shfl_sync(mask, value, source) ::emulator::shuffle(mask, value, source, __LINE__)
#define __shfl_xor_sync(mask, value, distance) ::emulator::shuffle_xor(mask, value, distance, __LINE__)
#define __ballot_sync(mask, predicate) ::emulator::ballot(mask, predicate, __LINE__)
#define __match_any_sync(mask, value) ::emulator::match_any(mask, value, __LINE__)

template <typename T>
T __ldg(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T) != 0) ::emulator::fail("a misaligned load");
  return *p;
}
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1; }
