// PixelLSTM's packed parameters, kept from one call to the next.
//
// Parameters can change without a trace: through .data, set_(), an array that shares their memory, somebody else's
// optimiser; and other parameters can come to lie at the same address. So a copy of the parameters is kept beside what
// was packed from it, and a call uses that only if its own parameters are the copy, byte for byte.
//
// Whether it is worth while to look or to keep is guessed from a fingerprint of a few of the numbers: parameters are
// kept when their fingerprint comes for the second time, so that those which are new in every call, as in an
// optimisation that samples at every step, are never copied.
#include "cpu/lstm/cache.h"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <mutex>

#include "cpu/lstm/host.h"

namespace pyar::cpu {

namespace {

constexpr size_t kMaxModels = 8;
constexpr int64_t kMaxBytes = int64_t{1} << 26;

// Fingerprints that are remembered.
constexpr size_t kRemembered = 32;
// Numbers of each parameter that go into the fingerprint: each may have to come from main memory.
constexpr int64_t kProbes = 8;

// Bytes that one thread copies or compares at a time.
constexpr int64_t kPieceBytes = int64_t{1} << 18;

uint64_t fingerprint(const LstmTensors& parameters, bool bfloat16) {
  uint64_t hash = bfloat16;
  const auto mix = [&](uint64_t word) {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  };
  for (const Tensor& tensor : parameters.tensors) {
    const int64_t count = tensor.numel();
    mix(count);
    for (int64_t probe = 0; probe < kProbes; ++probe) {
      uint32_t bits;
      std::memcpy(&bits, floats(tensor) + probe * count / kProbes, sizeof(bits));
      mix(bits);
    }
  }
  return hash;
}

// Runs work(bytes of a parameter, where they belong in the copy, how many) for all parameters, in pieces, in parallel.
template <class Work>
void for_pieces(Crew& crew, const LstmTensors& parameters, const Work& work) {
  struct Piece {
    const char* data;
    int64_t offset, bytes;
  };
  std::vector<Piece> pieces;
  int64_t offset = 0;
  for (const Tensor& tensor : parameters.tensors) {
    const char* data = reinterpret_cast<const char*>(floats(tensor));
    const int64_t bytes = tensor.numel() * static_cast<int64_t>(sizeof(float));
    for (int64_t first = 0; first < bytes; first += kPieceBytes)
      pieces.push_back({data + first, offset + first, std::min(kPieceBytes, bytes - first)});
    offset += bytes;
  }
  crew.share(static_cast<int64_t>(pieces.size()),
             [&](int64_t i, int64_t) { work(pieces[i].data, pieces[i].offset, pieces[i].bytes); });
}

int64_t count_floats(const LstmTensors& parameters) {
  int64_t total = 0;
  for (const Tensor& tensor : parameters.tensors) total += tensor.numel();
  return total;
}

// A copy of the parameters and what was packed from the copy: the two fit together even if somebody was writing to the
// parameters meanwhile.
class CachedLstm {
 public:
  CachedLstm(Crew& crew, const LstmTensors& parameters, bool bfloat16, uint64_t key)
      : key(key),
        sizes_(parameters.sizes),
        copy_(count_floats(parameters)),
        packed_(crew, sizes_, copy(crew, parameters), bfloat16) {}

  const uint64_t key;

  bool is_of(Crew& crew, const LstmTensors& parameters, bool bfloat16) const {
    if (!(parameters.sizes == sizes_) || bfloat16 != static_cast<bool>(packed_.model.bfloat16)) return false;
    std::atomic<bool> same{true};
    for_pieces(crew, parameters, [&](const char* data, int64_t offset, int64_t bytes) {
      if (same.load(std::memory_order_relaxed) && std::memcmp(data, copy_bytes() + offset, bytes) != 0)
        same.store(false, std::memory_order_relaxed);
    });
    return same.load();
  }

  const PackedLstm& packed() const { return packed_; }
  int64_t bytes() const { return copy_.bytes() + packed_.bytes(); }

 private:
  char* copy_bytes() const { return reinterpret_cast<char*>(copy_.get()); }

  // Returns where each parameter lies in the copy.
  std::vector<const float*> copy(Crew& crew, const LstmTensors& parameters) {
    for_pieces(crew, parameters, [&](const char* data, int64_t offset, int64_t bytes) {
      std::memcpy(copy_bytes() + offset, data, bytes);
    });
    std::vector<const float*> pointers;
    const float* next = copy_.get();
    for (const Tensor& tensor : parameters.tensors) {
      pointers.push_back(next);
      next += tensor.numel();
    }
    return pointers;
  }

  LstmSizes sizes_;
  Buffer<float> copy_;
  PackedLstm packed_;
};

using Entry = std::shared_ptr<const CachedLstm>;

// The models used last, the latest first, one of each fingerprint. The lock is held for the lists alone, never while
// parameters are compared, packed or freed; what a call uses lives until the call ends, whether still listed or not.
class Cache {
 public:
  // The model with this fingerprint, if it is the parameters' own.
  Entry find(Crew& crew, const LstmTensors& parameters, bool bfloat16, uint64_t key) {
    Entry entry;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto at = with(key);
      if (at == entries_.end()) return nullptr;
      entry = *at;
      std::rotate(entries_.begin(), at, at + 1);
    }
    return entry->is_of(crew, parameters, bfloat16) ? entry : nullptr;
  }

  // Remembers the fingerprint; returns whether it was remembered already.
  bool has_come_before(uint64_t key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (std::find(remembered_.begin(), remembered_.end(), key) != remembered_.end()) return true;
    remembered_[next_++ % kRemembered] = key;
    return false;
  }

  void add(Entry entry) {
    if (entry->bytes() > kMaxBytes) return;
    std::vector<Entry> dropped;  // freed after the lock
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto drop = [&](std::vector<Entry>::iterator at) {
      dropped.push_back(std::move(*at));
      entries_.erase(at);
    };
    if (const auto at = with(entry->key); at != entries_.end()) drop(at);
    entries_.insert(entries_.begin(), std::move(entry));
    while (entries_.size() > kMaxModels || bytes() > kMaxBytes) drop(entries_.end() - 1);
  }

  // Around a fork: another thread's lock would never be released in the new process.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

  LstmCacheFacts facts() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {static_cast<int64_t>(entries_.size()), bytes(), hits, misses};
  }

  std::atomic<int64_t> hits{0}, misses{0};

 private:
  std::vector<Entry>::iterator with(uint64_t key) {
    return std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) { return entry->key == key; });
  }

  int64_t bytes() const {
    int64_t total = 0;
    for (const Entry& entry : entries_) total += entry->bytes();
    return total;
  }

  std::mutex mutex_;
  std::vector<Entry> entries_;
  std::array<uint64_t, kRemembered> remembered_{};
  size_t next_ = 0;
};

// Never destroyed: a thread may still be sampling while the process ends.
Cache& cache() {
  static Cache* const instance = new Cache;
  static const int registered =
      pthread_atfork([] { instance->lock(); }, [] { instance->unlock(); }, [] { instance->unlock(); });
  static_cast<void>(registered);
  return *instance;
}

}  // namespace

std::shared_ptr<const PackedLstm> cached_lstm(Crew& crew, const LstmTensors& parameters, bool bfloat16) {
  const uint64_t key = fingerprint(parameters, bfloat16);
  Entry entry = cache().find(crew, parameters, bfloat16, key);
  ++(entry != nullptr ? cache().hits : cache().misses);
  if (entry == nullptr) {
    // What is packed takes about as much again as the copy.
    const bool fits = 2 * count_floats(parameters) * static_cast<int64_t>(sizeof(float)) <= kMaxBytes;
    if (!fits || !cache().has_come_before(key)) return std::make_shared<const PackedLstm>(crew, parameters, bfloat16);
    entry = std::make_shared<const CachedLstm>(crew, parameters, bfloat16, key);
    cache().add(entry);
  }
  return {entry, &entry->packed()};
}

LstmCacheFacts lstm_cache_facts() { return cache().facts(); }

}  // namespace pyar::cpu
