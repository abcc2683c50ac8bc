// How a team of threads comes together.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "cpu/team.h"

namespace pyar::cpu {

// Runs member(team, rank) on as many of `wanted` threads as have come together after a moment. Which threads
// parallel_for really has free, and whether it runs its ranges at once or one after the other, is not known beforehand;
// so nobody waits for a member that has not arrived, and one that comes too late has nothing to do.
//   step_bytes  what a step reads, all members together: how long a member may take for its part
template <class Member>
void run_team(int64_t wanted, int64_t step_bytes, const Member& member) {
  constexpr int64_t kClosed = int64_t{1} << 32;
  std::atomic<int64_t> arrivals{0};
  std::atomic<bool> ready{false};  // team.size has been written: arrivals close a moment before that
  Team team{};
  team.patience = 50'000 + step_bytes / 10;  // ten times as long as it should take
  torch::stable::parallel_for(0, wanted, 1, [&](int64_t begin, int64_t end) {
    const int64_t arrival = arrivals.fetch_add(1);
    if (arrival >= kClosed) return;
    if (arrival == 0) {
      const int64_t expected = end - begin == wanted ? 1 : wanted;
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(1);
      while (arrivals.load() < expected && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
      team.size = static_cast<int>(arrivals.fetch_add(kClosed));
      ready.store(true);
    }
    while (!ready.load()) std::this_thread::yield();
    member(&team, static_cast<int>(arrival));
  });
}

}  // namespace pyar::cpu
