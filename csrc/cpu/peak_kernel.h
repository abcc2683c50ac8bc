// What bounds any kernel on this machine, for benchmarks: multiply-adds from registers, loads from memory.
#pragma once

#include <stdint.h>

#define PYAR_DECLARE_PEAK_KERNELS                                     \
  /* Runs `rounds` rounds of independent multiply-adds; returns how   \
     many floating-point operations those were. */                    \
  int64_t multiply_add_loop(int64_t rounds);                          \
  /* Sums count floats, count a multiple of 64: a stream of loads. */ \
  float load_loop(const float* p, int64_t count);

namespace pyar::cpu::baseline {
PYAR_DECLARE_PEAK_KERNELS
}
namespace pyar::cpu::avx2 {
PYAR_DECLARE_PEAK_KERNELS
}
namespace pyar::cpu::avx512 {
PYAR_DECLARE_PEAK_KERNELS
}
