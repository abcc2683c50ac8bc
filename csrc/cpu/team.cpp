#include "cpu/team.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <torch/csrc/stable/ops.h>
#include <unistd.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cmath>
#include <exception>
#include <fstream>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

namespace pyar::cpu {

namespace {

// Nanoseconds for which the calling thread spins at the end of a phase, and a worker when it has nothing to do.
constexpr int64_t kCallerSpin = 30'000;
constexpr int64_t kWorkerSpin = 100'000;
// Nanoseconds within which the members of a team come together.
constexpr int64_t kMuster = 100'000;
constexpr int kSpins = 32;  // between two looks at the clock

std::atomic<int64_t> pretended_processors{0};

// Sleeps while *word is `value`; may wake for no reason.
void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
#if defined(__linux__)
  // std::atomic's wait() gives its processor away some times before it sleeps, which on a busy machine costs its turn.
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  word.wait(value);
#endif
}

void wake_one(std::atomic<uint32_t>& word) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
#else
  word.notify_one();
#endif
}

// Spins until the condition holds or the time is over; returns whether it holds.
template <class Condition>
bool spin_until(int64_t limit, const Condition& condition) {
  int64_t since = 0;
  for (int spins = 1; !condition(); ++spins) {
    relax();
    if (spins % kSpins != 0) continue;
    const int64_t now = nanoseconds();
    if (since == 0) since = now;
    if (now - since > limit) return false;
  }
  return true;
}

}  // namespace

// One crew's pieces. Gatherings are never freed, so that a worker may look at one at any time; if it is held up between
// a look and a claim, and other pieces lie there then, its claim fails.
struct alignas(64) Gathering {
  static constexpr uint32_t kSleeping = uint32_t{1} << 31;

  std::atomic<bool> taken{false};
  // The phase's number in the upper half, the pieces that are still to be claimed in the lower. The phase's facts are
  // written while that is 0 and nothing can be claimed.
  alignas(64) std::atomic<uint64_t> claims{0};
  std::atomic<int64_t> size{0};  // the crew's
  std::atomic<uint32_t> pieces{0};
  std::atomic<void (*)(const void*, int64_t, int64_t)> call{nullptr};
  std::atomic<const void*> work{nullptr};
  // The rest is for those who have claimed a piece.
  std::fenv_t environment;  // the calling thread's way of rounding, so that results do not depend on who computes them
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  alignas(64) std::atomic<uint32_t> unfinished{0};  // with kSleeping: the calling thread sleeps until it is 0

  // Claims and runs pieces while there are any; returns how many.
  //   done  counts a worker's pieces; null for the calling thread
  int64_t work_on(int64_t seat, std::atomic<int64_t>* done) {
    int64_t count = 0;
    uint64_t seen = claims.load(std::memory_order_seq_cst);
    while ((seen & 0xffffffffu) != 0) {
      const auto f = call.load(std::memory_order_relaxed);
      const void* of = work.load(std::memory_order_relaxed);
      const int64_t piece = pieces.load(std::memory_order_relaxed) - (seen & 0xffffffffu);
      if (seat >= size.load(std::memory_order_relaxed)) break;
      if (!claims.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      if (done != nullptr) {
        if (count == 0) std::fesetenv(&environment);
        done->fetch_add(1, std::memory_order_relaxed);
      }
      ++count;
      if (!failed.load(std::memory_order_relaxed)) {
        try {
          f(of, piece, seat);
        } catch (...) {
          if (!failed.exchange(true)) error = std::current_exception();
        }
      }
      // The last finisher must not touch the phase's facts any more: the calling thread goes on.
      if (unfinished.fetch_sub(1, std::memory_order_acq_rel) == (kSleeping | 1)) wake_one(unfinished);
      seen = claims.load(std::memory_order_acquire);
    }
    return count;
  }

  // By the calling thread: until every claimed piece is finished.
  void wait() {
    const auto finished = [&] { return unfinished.load(std::memory_order_acquire) == 0; };
    if (spin_until(kCallerSpin, finished)) return;
    uint32_t left = unfinished.fetch_or(kSleeping, std::memory_order_acq_rel) | kSleeping;
    while (left != kSleeping) {
      sleep_while(unfinished, left);
      left = unfinished.load(std::memory_order_acquire);
    }
  }
};

namespace {

// What workers are worth at the moment: the time that they have saved, less the time for which calling threads have
// waited for pieces of theirs. Beside busy neighbours a worker can lose its processor in the middle of a piece, and for
// far longer than the whole call should take. If they cost more than they save, calls go alone for a while in
// proportion, which bounds the loss, and then try again.
class Account {
 public:
  bool in_debt(int64_t now) const { return now < alone_until_.load(std::memory_order_relaxed); }

  void settle(int64_t now, int64_t saved, int64_t waited) {
    // Not quite exact where several threads settle at once, which does no harm.
    if (pretended_processors.load(std::memory_order_relaxed) > 0) return;  // a test wants to see workers at work
    const int64_t balance = std::min(balance_.load(std::memory_order_relaxed) + saved - waited, kMostCredit);
    if (balance < 0) alone_until_.store(now - kPause * balance, std::memory_order_relaxed);
    balance_.store(std::max<int64_t>(balance, 0), std::memory_order_relaxed);
  }

 private:
  static constexpr int64_t kMostCredit = 4'000'000;  // nanoseconds, about a turn of the system's scheduler
  static constexpr int64_t kPause = 8;               // times the debt
  std::atomic<int64_t> balance_{kMostCredit}, alone_until_{0};
};

// The workers of this process. Never destroyed: they sleep until the process ends.
class Pool {
 public:
  static constexpr int64_t kMostWorkers = 255;
  static constexpr int64_t kGatherings = 64;  // crews at the same time that have workers

  // A free gathering, for a crew of that size; null if there is none.
  Gathering* gather(int64_t size) {
    make_workers(size - 1);
    if (num_workers_.load(std::memory_order_acquire) == 0) return nullptr;
    for (int64_t i = 0; i < kGatherings; ++i) {
      Gathering& gathering = gatherings_[i];
      if (gathering.taken.load(std::memory_order_relaxed) || gathering.taken.exchange(true)) continue;
      gathering.size.store(size, std::memory_order_relaxed);
      int64_t used = used_.load(std::memory_order_relaxed);
      while (used <= i && !used_.compare_exchange_weak(used, i + 1)) {
      }
      return &gathering;
    }
    return nullptr;
  }

  // There are pieces to claim, for workers 0 … wanted − 1.
  void announce(int64_t wanted) {
    news_.fetch_add(1, std::memory_order_seq_cst);
    wake_below(-1, wanted);
  }

  void hold(bool on) { held_.store(on); }

  Account account;

  int64_t pieces() const {
    int64_t total = 0;
    for (const Worker& worker : workers_) total += worker.pieces.load(std::memory_order_relaxed);
    return total;
  }

 private:
  struct alignas(64) Worker {
    std::atomic<uint32_t> asleep{0};
    std::atomic<int64_t> pieces{0};  // that it has run
  };

  void make_workers(int64_t wanted) {
    wanted = std::min(wanted, kMostWorkers);
    if (num_workers_.load(std::memory_order_acquire) >= wanted) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    sigset_t all, before;
    sigfillset(&all);
    // What the thread does wrong itself must still reach the handler; all else belongs to the program's own threads.
    for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) sigdelset(&all, signal);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int64_t index = num_workers_.load(); index < wanted; ++index) {
      try {
        std::thread([this, index] { run(index); }).detach();
      } catch (const std::system_error&) {
        break;  // the system has no more threads: the crews are smaller
      }
      num_workers_.store(index + 1, std::memory_order_release);
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  // Wakes the sleeping workers right below one in a binary tree, if they are among the first `wanted`; these wake those
  // below them. The calling thread is at the root, number −1.
  void wake_below(int64_t index, int64_t wanted) {
    const int64_t end = std::min({2 * index + 4, wanted, num_workers_.load(std::memory_order_relaxed)});
    for (int64_t i = 2 * index + 2; i < end; ++i) {
      std::atomic<uint32_t>& asleep = workers_[i].asleep;
      if (asleep.load(std::memory_order_seq_cst) != 0 && asleep.exchange(0) != 0) wake_one(asleep);
    }
  }

  // Runs what there is for this worker; returns whether there was anything.
  bool look_around(int64_t index) {
    bool any = false;
    const int64_t used = used_.load(std::memory_order_acquire);
    for (int64_t i = 0; i < used && !held_.load(std::memory_order_relaxed); ++i) {
      Gathering& gathering = gatherings_[i];
      const uint64_t left = gathering.claims.load(std::memory_order_seq_cst) & 0xffffffffu;
      if (left == 0) continue;
      if (left > 1) wake_below(index, gathering.size.load(std::memory_order_relaxed) - 1);
      any = gathering.work_on(index + 1, &workers_[index].pieces) > 0 || any;
    }
    return any;
  }

  void run(int64_t index) {
#if defined(__linux__)
    pthread_setname_np(pthread_self(), "pyar");
#endif
    std::atomic<uint32_t>& asleep = workers_[index].asleep;
    while (true) {
      const uint32_t news = news_.load(std::memory_order_seq_cst);
      if (look_around(index)) continue;
      if (spin_until(kWorkerSpin, [&] { return news_.load(std::memory_order_relaxed) != news; })) continue;
      asleep.store(1, std::memory_order_seq_cst);
      if (news_.load(std::memory_order_seq_cst) != news) {
        asleep.store(0);
        continue;
      }
      while (asleep.load() != 0) sleep_while(asleep, 1);
    }
  }

  std::mutex mutex_;
  std::atomic<int64_t> num_workers_{0};
  std::atomic<int64_t> used_{0};  // gatherings that were ever taken
  std::atomic<bool> held_{false};
  alignas(64) std::atomic<uint32_t> news_{0};
  Worker workers_[kMostWorkers];
  Gathering gatherings_[kGatherings];
};

std::atomic<Pool*> the_pool{nullptr};

// A forked process has none of the workers, and whatever its parent's crews were doing is not its own.
void forget_pool() { the_pool.store(nullptr); }

Pool& pool() {
  Pool* found = the_pool.load(std::memory_order_acquire);
  if (found != nullptr) return *found;
  static const int registered = pthread_atfork(nullptr, nullptr, &forget_pool);
  static_cast<void>(registered);
  Pool* made = new Pool;
  if (the_pool.compare_exchange_strong(found, made)) return *made;
  delete made;
  return *found;
}

// CPUs' worth of time that the control groups of this process allow it; infinite where there is no limit.
double cpu_quota() {
  double quota = INFINITY;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    // "0::/path" for version 2, "4:cpu,cpuacct:/path" for version 1.
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    std::string controllers = line.substr(first, second - first) + ':';
    std::replace(controllers.begin(), controllers.end(), ',', ':');
    const bool version2 = controllers == "::";
    if (!version2 && controllers.find(":cpu:") == std::string::npos) continue;
    // Every group above counts too. In a container the path may be the host's, and the root be the container's own.
    for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {
      if (path == "/") path.clear();
      double time = 0, period = 0;
      if (version2) {
        std::ifstream("/sys/fs/cgroup" + path + "/cpu.max") >> time >> period;  // "max 100000" where there is none
      } else {
        std::ifstream("/sys/fs/cgroup/cpu" + path + "/cpu.cfs_quota_us") >> time;
        std::ifstream("/sys/fs/cgroup/cpu" + path + "/cpu.cfs_period_us") >> period;
      }
      if (time > 0 && period > 0) quota = std::min(quota, time / period);
      if (path.rfind('/') == std::string::npos) break;
    }
  }
  return quota;
}

}  // namespace

int64_t num_threads() {
  static const double quota = cpu_quota();
  int64_t threads = torch::stable::get_num_threads();
  const int64_t pretended = pretended_processors.load(std::memory_order_relaxed);
  if (pretended > 0) return std::clamp<int64_t>(threads, 1, pretended);
  if (quota < static_cast<double>(threads)) threads = static_cast<int64_t>(std::ceil(quota));
#if defined(__linux__)
  cpu_set_t processors;
  if (sched_getaffinity(0, sizeof processors, &processors) == 0)  // fails where there are more than a thousand
    threads = std::min<int64_t>(threads, CPU_COUNT(&processors));
#endif
  return std::max<int64_t>(threads, 1);
}

Crew::Crew(int64_t threads)
    : size_(std::clamp<int64_t>(threads, 1, Pool::kMostWorkers + 1)),
      gathering_(size_ > 1 ? pool().gather(size_) : nullptr) {
  if (gathering_ != nullptr) std::fegetenv(&gathering_->environment);
}

Crew::~Crew() {
  if (gathering_ != nullptr) gathering_->taken.store(false, std::memory_order_release);
}

void Crew::share(int64_t pieces, void (*call)(const void*, int64_t, int64_t), const void* work) {
  const int64_t start = gathering_ != nullptr && pieces > 1 ? nanoseconds() : 0;
  if (start == 0 || pool().account.in_debt(start)) {
    for (int64_t piece = 0; piece < pieces; ++piece) call(work, piece, 0);
    return;
  }
  Gathering& g = *gathering_;
  g.pieces.store(static_cast<uint32_t>(pieces), std::memory_order_relaxed);
  g.call.store(call, std::memory_order_relaxed);
  g.work.store(work, std::memory_order_relaxed);
  g.unfinished.store(static_cast<uint32_t>(pieces), std::memory_order_relaxed);
  const uint64_t phase = (g.claims.load(std::memory_order_relaxed) >> 32) + 1;
  g.claims.store(phase << 32 | static_cast<uint64_t>(pieces), std::memory_order_seq_cst);
  pool().announce(std::min(size_, pieces) - 1);
  const int64_t mine = g.work_on(0, nullptr), others = pieces - mine;
  if (others > 0) {
    const int64_t claimed = nanoseconds();
    g.wait();
    const int64_t now = nanoseconds();
    pool().account.settle(now, others * (claimed - start) / std::max<int64_t>(mine, 1),
                          std::max<int64_t>(now - claimed - kCallerSpin, 0));
  }
  if (g.failed.load(std::memory_order_relaxed)) {
    const std::exception_ptr error = std::exchange(g.error, nullptr);
    g.failed.store(false, std::memory_order_relaxed);
    std::rethrow_exception(error);
  }
}

int64_t pieces_by_workers() { return pool().pieces(); }

void hold_workers(bool hold) { pool().hold(hold); }

void pretend_processors(int64_t processors) { pretended_processors.store(processors); }

Muster::Muster(int64_t members, int64_t step_bytes) : members_(members) {
  team.patience = 50'000 + step_bytes / 10;  // ten times as long as a step should take
}

int Muster::arrive() {
  constexpr int64_t kClosed = int64_t{1} << 32;
  int64_t seen = __atomic_fetch_add(&arrivals_, 1, __ATOMIC_ACQ_REL);
  if (seen >= kClosed) return -1;
  const int rank = static_cast<int>(seen);
  const auto state = [this] { return __atomic_load_n(&arrivals_, __ATOMIC_ACQUIRE); };
  if (rank + 1 < members_) spin_until(kMuster, [&] { return state() >= members_; });
  // Whoever has waited long enough closes: another one may have lost its processor.
  for (seen = state(); seen < kClosed;) {
    if (!__atomic_compare_exchange_n(&arrivals_, &seen, seen | kClosed, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
      continue;
    team.size = static_cast<int>(seen);
    __atomic_store_n(&open_, 0, __ATOMIC_RELEASE);
    break;
  }
  while (__atomic_load_n(&open_, __ATOMIC_ACQUIRE) != 0) relax();
  return rank;
}

}  // namespace pyar::cpu
