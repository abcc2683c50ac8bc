// How the operations divide their work over threads, on machines that are busy with other things too.
//
//   Crew crew;                                      // the calling thread, and pyar's workers as they come
//   crew.share(pieces, [&](int64_t piece, int64_t seat) { … });   // as often as the operation has phases
//
// Work is cut into pieces that are claimed one by one by whoever runs. The calling thread takes part and could finish
// alone: it never waits for a worker that the system has not scheduled, only for pieces that were claimed and are not
// finished. Waits are short and then sleep. Between two phases, and between calls that follow each other closely,
// workers stay awake, so that a phase of some ten microseconds is worth sharing.
//
// What a piece computes must not depend on who takes it or when: sums have an order by piece, never by thread.
//
// Workers are made when they are first needed and sleep while there is nothing to do. A process that was forked starts
// without any and makes its own. Several threads may call at once; they share the workers. A phase costs the calling
// thread about a tenth of a microsecond, a Crew as much again, and a worker that has to be woken some microseconds.
//
// The kernels' files include this too: nothing of C++'s library may stand here.
#pragma once

#include <stdint.h>
#include <time.h>

namespace pyar::cpu {

// How many threads a call may use: torch.get_num_threads(), but no more than the processors that this process may run
// on and than its CPU quota is worth (the limit of a container). Costs a visit to the system.
int64_t num_threads();

struct Gathering;

class Crew {
 public:
  // With at most that many threads, the calling one among them.
  explicit Crew(int64_t threads = num_threads());
  ~Crew();
  Crew(const Crew&) = delete;

  // The number of threads, hence of seats.
  int64_t size() const { return size_; }

  // Runs work(piece, seat) once for each piece 0 … pieces − 1, claimed in this order, and returns when all are
  // finished. Two pieces that run at the same time have different seats, 0 … size() − 1: each seat may have work space
  // of its own. What a piece throws is thrown here, once the pieces that were claimed are finished; the others may not
  // have run.
  template <class Work>
  void share(int64_t pieces, const Work& work) {
    share(
        pieces, [](const void* w, int64_t piece, int64_t seat) { (*static_cast<const Work*>(w))(piece, seat); }, &work);
  }

 private:
  void share(int64_t pieces, void (*call)(const void* work, int64_t piece, int64_t seat), const void* work);

  int64_t size_;
  Gathering* gathering_;  // where the workers find this crew's pieces; null: there are none
};

// Pieces that workers have run in this process.
int64_t pieces_by_workers();

// For tests. Workers that are held claim nothing, as if the system did not schedule them. Calls that pretend believe
// that this process may use so many processors; 0: they ask the system.
void hold_workers(bool hold);
void pretend_processors(int64_t processors);

// ---------------------------------------------------------------------------------------------------------------------
// Teams: threads that share the work of every step and meet before they go on with what the others have made.

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

// Tells the processor that this thread waits.
inline __attribute__((always_inline)) void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb" ::: "memory");
#endif
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
    relax();
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

// Makes one piece of every member; the first to come waits a moment for the others, then arrivals are closed.
class Muster {
 public:
  //   step_bytes  what a step reads, all members together: how long a member may take for its part
  Muster(int64_t members, int64_t step_bytes);

  // This thread's rank in the team, 0 … team.size − 1, or −1 if it has come too late.
  int arrive();

  Team team{};

 private:
  int64_t members_;
  int64_t arrivals_ = 0;
  int open_ = 1;  // team.size has not been written yet
};

// Runs member(team, rank) on as many of `members` threads of the crew as come together within a moment.
template <class Member>
void run_team(Crew& crew, int64_t members, int64_t step_bytes, const Member& member) {
  Muster muster(members, step_bytes);
  crew.share(members, [&](int64_t, int64_t) {
    const int rank = muster.arrive();
    if (rank >= 0) member(&muster.team, rank);
  });
}

}  // namespace pyar::cpu
