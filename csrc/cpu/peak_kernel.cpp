#include "cpu/peak_kernel.h"

#include "cpu/simd.h"

namespace pyar::cpu::PYAR_LEVEL {

int64_t multiply_add_loop(int64_t rounds) {
  // Twelve chains hide a latency of up to six cycles on two pipes, and with two operands fit in sixteen registers.
  constexpr int kChains = 12;
  Vector sum[kChains];
  for (int i = 0; i < kChains; ++i) sum[i] = broadcast(static_cast<float>(i));
  const Vector factor = broadcast(0.999f), addend = broadcast(0.5f);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sum[i] = fused_multiply_add(sum[i], factor, addend);
  }
  Vector total = {};
  for (int i = 0; i < kChains; ++i) total += sum[i];
  volatile float sink = horizontal_sum(total);
  (void)sink;
  return rounds * kChains * kWidth * 2;
}

float load_loop(const float* p, int64_t count) {
  Vector sum[4] = {};
  for (int64_t i = 0; i < count; i += 4 * kWidth)
    for (int j = 0; j < 4; ++j) sum[j] += load(p + i + j * kWidth);
  return horizontal_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

}  // namespace pyar::cpu::PYAR_LEVEL
