#include "kernels/cpu/thread_pool.h"

#include <immintrin.h>

#include <algorithm>

namespace invar::cpu {
namespace {

// Iterations of a pause loop: some tens of microseconds, the gap between two
// loops of a forward pass. Other processes share the cores, so not longer.
constexpr int kSpins = 2000;

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
  for (int i = 1; i < threads; ++i) {
    helpers_.emplace_back([this] { Help(); });
  }
}

ThreadPool::~ThreadPool() {
  ticket_ = kStop;
  ticket_.notify_all();
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

void ThreadPool::Help() {
  _mm_setcsr(kDefaultFloatingPoint);
  for (;;) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    for (int spin = 0; spin < kSpins && ChunksLeft(ticket) == 0; ++spin) {
      _mm_pause();
      ticket = ticket_.load(std::memory_order_acquire);
    }
    if (ticket == kStop) return;
    if (ChunksLeft(ticket) == 0) {
      ticket_.wait(ticket);
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
  if (chunks == 1 || helpers_.empty()) {
    body(0, count);
    return;
  }
  body_ = &body;
  count_ = count;
  grain_ = grain;
  chunks_done_.store(0, std::memory_order_relaxed);
  const uint64_t loop = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  const uint64_t ticket = loop << 32 | chunks;
  ticket_.store(ticket);
  ticket_.notify_all();
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

}  // namespace invar::cpu
