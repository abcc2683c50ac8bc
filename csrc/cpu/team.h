// A team of threads that share the work of every step and meet before they go on with what the others have made.
#pragma once

#include <stdint.h>
#include <time.h>

namespace pyar::cpu {

struct Team {
  alignas(64) int64_t arrived;  // calls of meet() by all members, frozen and with kTaken once a member goes on alone
  alignas(64) int size;
  int64_t patience;  // nanoseconds that a member waits for the others
};

constexpr int64_t kTaken = int64_t{1} << 62;

// What a member does after a meeting: go on with the others; go on alone from where all met last; or leave, because
// another member goes on alone.
enum class Meeting { together, alone, over };

inline __attribute__((always_inline)) int64_t nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{1'000'000'000} * now.tv_sec + now.tv_nsec;
}

// Waits until every member has called this as often as this one has; *meetings counts the calls. On a busy machine a
// member may not be running at all, and every step would wait until it has a processor again. So patience has an end:
// the member that loses it first goes on alone, and the others leave when they notice. A null team is one thread alone.
inline __attribute__((always_inline)) Meeting meet(Team* team, int64_t* meetings) {
  constexpr int kSpins = 500;  // between two looks at the clock
  if (team == nullptr) return Meeting::together;
  const int64_t all = ++*meetings * team->size;
  const auto replace = [team](int64_t* expected, int64_t desired) {  // if it fails, *expected is what is there
    return __atomic_compare_exchange_n(&team->arrived, expected, desired, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
  };
  int64_t arrived = __atomic_load_n(&team->arrived, __ATOMIC_ACQUIRE);
  while (arrived < kTaken) {
    if (!replace(&arrived, arrived + 1)) continue;
    ++arrived;
    break;
  }
  int64_t since = 0;
  // A meeting that was complete before a member went on alone still counts.
  for (int spins = 1; (arrived & ~kTaken) < all; ++spins) {
    if (arrived >= kTaken) return Meeting::over;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (spins % kSpins == 0) {
      const int64_t now = nanoseconds();
      if (since == 0) since = now;
      // Succeeds only if nobody has arrived in the meantime: either all go on together or one does alone.
      if (now - since > team->patience && replace(&arrived, arrived | kTaken)) return Meeting::alone;
    }
    arrived = __atomic_load_n(&team->arrived, __ATOMIC_ACQUIRE);
  }
  return Meeting::together;
}

}  // namespace pyar::cpu
