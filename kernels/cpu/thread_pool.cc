#include "kernels/cpu/thread_pool.h"

#include <immintrin.h>

#include <algorithm>
#include <chrono>

namespace invar::cpu {
namespace {

// Iterations of a pause loop that waits for a helper's last chunk: some tens of
// microseconds.
constexpr int kSpins = 2000;
// How long a helper looks for the next loop before it sleeps: longer than from
// the end of a step of many sequences to the next one's first loop, since
// waking one helper after the other takes as long again. Other processes share
// the cores, so not longer.
constexpr auto kLook = std::chrono::microseconds(300);

// Looks for kLook.
class Lookout {
 public:
  bool Looks() {
    _mm_pause();
    return ++looks_ % kLooksAClock != 0 || Clock::now() < end_;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int kLooksAClock = 16;

  const Clock::time_point end_ = Clock::now() + kLook;
  int looks_ = 0;
};

// Denormals are numbers: no flush to zero in any thread that computes.
constexpr unsigned kDefaultFloatingPoint = 0x1f80;

// The last ticket: no loop reaches its number.
constexpr uint64_t kStop = ~uint64_t{0};

uint32_t ChunksLeft(uint64_t ticket) { return static_cast<uint32_t>(ticket); }

}  // namespace

ThreadPool::ThreadPool(int threads, Isa isa) : isa_(isa) {
  if (threads <= 0) {
    threads = std::max(1u, std::thread::hardware_concurrency());
  }
  threads_ = threads;
  for (int i = 1; i < threads; ++i) {
    helpers_.emplace_back([this] { Help(); });
  }
}

ThreadPool::~ThreadPool() {
  Publish(kStop);
  for (std::thread& helper : helpers_) helper.join();
}

bool ThreadPool::RunChunk(uint64_t ticket) {
  const uint64_t loop = ticket >> 32;
  do {
    if (ticket >> 32 != loop || ChunksLeft(ticket) == 0) return false;
  } while (!ticket_.compare_exchange_weak(ticket, ticket - 1,
                                          std::memory_order_acquire));
  // The loop cannot end before this chunk is counted, so its fields stand.
  const int64_t chunks = (count_ + grain_ - 1) / grain_;
  const int64_t begin = (chunks - ChunksLeft(ticket)) * grain_;
  (*body_)(begin, std::min(begin + grain_, count_));
  chunks_done_.fetch_add(1, std::memory_order_release);
  return true;
}

// Either a helper finds the ticket or its publisher finds the helper: both
// write first and look afterwards, and all threads agree on the order of it
// all. The helper says so after it has read wakes_, so that what it said is
// unsaid only with a wake that it sees.
void ThreadPool::Sleep() {
  const int wakes = wakes_;
  asleep_ = true;
  const uint64_t ticket = ticket_;
  if (ChunksLeft(ticket) == 0) wakes_.wait(wakes);
}

void ThreadPool::Publish(uint64_t ticket) {
  ticket_ = ticket;
  if (!asleep_ || !asleep_.exchange(false)) return;
  ++wakes_;
  wakes_.notify_all();
}

void ThreadPool::Help() {
  _mm_setcsr(kDefaultFloatingPoint);
  for (;;) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    for (Lookout lookout; ChunksLeft(ticket) == 0 && lookout.Looks();) {
      ticket = ticket_.load(std::memory_order_acquire);
    }
    if (ticket == kStop) return;
    if (ChunksLeft(ticket) == 0) {
      Sleep();
      continue;
    }
    while (RunChunk(ticket)) {
    }
  }
}

void ThreadPool::ParallelFor(int64_t count, int64_t grain, Body body) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  // Chunks are counted in 32 bits.
  grain = std::max(grain, (count >> 31) + 1);
  const uint32_t chunks = static_cast<uint32_t>((count + grain - 1) / grain);
  if (chunks == 1 || threads_ == 1) {
    body(0, count);
    return;
  }
  body_ = &body;
  count_ = count;
  grain_ = grain;
  chunks_done_.store(0, std::memory_order_relaxed);
  const uint64_t loop = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  const uint64_t ticket = loop << 32 | chunks;
  Publish(ticket);
  while (RunChunk(ticket)) {
  }
  for (int spin = 0; chunks_done_.load(std::memory_order_acquire) != chunks;
       ++spin) {
    // A helper may have lost its core in the middle of a chunk.
    if (spin < kSpins) {
      _mm_pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::ParallelForRows(int64_t rows, int64_t work, Body body) {
  // A loop on several threads costs what so many elements do.
  constexpr int64_t kWorthALoop = 8192;
  constexpr int64_t kWorthAClaim = 1024;
  constexpr int64_t kRowsMost = 16;
  if (rows * work < kWorthALoop) {
    if (rows > 0) body(0, rows);
    return;
  }
  const int64_t even = std::min(kRowsMost, (rows + threads_ - 1) / threads_);
  ParallelFor(rows, std::max(even, kWorthAClaim / work), body);
}

void ThreadPool::ForTeams(int teams,
                          absl::FunctionRef<void(int64_t, ThreadPool&)> body) {
  while (static_cast<int>(teams_.size()) < teams) {
    teams_.emplace_back(new ThreadPool(NoThreads(), isa_));
  }
  for (int i = 0; i < teams; ++i) {
    teams_[i]->threads_ = threads_ / teams;
    // Nobody helps: all left before the last call returned.
    teams_[i]->ticket_.store(0, std::memory_order_relaxed);
  }
  // Chunks are claimed in ascending order: first of all those that compute.
  ParallelFor(threads_, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (i < teams) {
        body(i, *teams_[i]);
        teams_[i]->Publish(kStop);
        continue;
      }
      for (int64_t k = 0; k < teams; ++k) teams_[(i + k) % teams]->Help();
    }
  });
}

}  // namespace invar::cpu
