#include "cpu/dispatch.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace pyar::cpu {

bool level_supported(Level level) {
#if defined(__x86_64__)
  switch (level) {
    case Level::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && level_supported(Level::avx2);
    case Level::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Level::baseline:
      return true;
  }
  return false;
#else
  return level == Level::baseline;
#endif
}

const char* level_name(Level level) {
  switch (level) {
    case Level::avx512:
      return "avx512";
    case Level::avx2:
      return "avx2";
    case Level::baseline:
      return "baseline";
  }
  return "";
}

namespace {

Level choose_level() {
  const Level levels[] = {Level::avx512, Level::avx2, Level::baseline};
  const char* wanted = std::getenv("PYAR_CPU_LEVEL");
  if (wanted == nullptr || *wanted == '\0') {
    for (const Level candidate : levels)
      if (level_supported(candidate)) return candidate;
  } else {
    for (const Level candidate : levels) {
      if (std::strcmp(wanted, level_name(candidate)) != 0) continue;
      if (level_supported(candidate)) return candidate;
      throw std::runtime_error(std::string("PYAR_CPU_LEVEL=") + wanted + ", but this processor does not have it");
    }
    throw std::runtime_error(std::string("PYAR_CPU_LEVEL must be baseline, avx2 or avx512, got '") + wanted + "'");
  }
  return Level::baseline;
}

}  // namespace

Level level() {
  static const Level chosen = choose_level();
  return chosen;
}

}  // namespace pyar::cpu
