// Which build of the CPU kernels runs: the highest instruction-set level that this processor has, or a lower one that
// the environment variable PYAR_CPU_LEVEL names. Decided once, when the extension is loaded.
#pragma once

namespace pyar::cpu {

enum class Level { baseline, avx2, avx512 };

// The level in use.
Level level();

const char* level_name(Level level);

// Whether this processor can run the level.
bool level_supported(Level level);

}  // namespace pyar::cpu

// The symbol of that name from the build for the level in use: PYAR_FOR_THIS_CPU(nade_kernels) is one of
// baseline::nade_kernels, avx2::nade_kernels and avx512::nade_kernels. Other processors have the baseline alone.
#if defined(__x86_64__)
#define PYAR_FOR_THIS_CPU(symbol)                                                   \
  (::pyar::cpu::level() == ::pyar::cpu::Level::avx512 ? ::pyar::cpu::avx512::symbol \
   : ::pyar::cpu::level() == ::pyar::cpu::Level::avx2 ? ::pyar::cpu::avx2::symbol   \
                                                      : ::pyar::cpu::baseline::symbol)
#else
#define PYAR_FOR_THIS_CPU(symbol) (::pyar::cpu::baseline::symbol)
#endif
