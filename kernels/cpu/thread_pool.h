// Threads that share out the iterations of a loop.
//
// A loop's result must not depend on which thread runs an iteration or when:
// iterations write apart and sum nothing across. So the pool may hand them out
// in any order, and the number of threads never moves a bit.
#ifndef INVAR_KERNELS_CPU_THREAD_POOL_H_
#define INVAR_KERNELS_CPU_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kernels/cpu/isa.h"

namespace invar::cpu {

// One caller at a time.
class ThreadPool {
 public:
  // threads: with the caller's; 0 is one per core.
  // isa: of the loops' bodies, where they have a choice; never moves a bit. At
  // most BestIsa().
  explicit ThreadPool(int threads, Isa isa = BestIsa());
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(helpers_.size()) + 1; }

  Isa isa() const { return isa_; }

  // Calls body(begin, end) over [0, count) in chunks of `grain` iterations,
  // the caller taking part, and returns when all are done. A helper that the
  // system has not scheduled delays nothing: chunks are claimed, not assigned.
  void ParallelFor(int64_t count, int64_t grain,
                   absl::FunctionRef<void(int64_t, int64_t)> body);

 private:
  using Body = absl::FunctionRef<void(int64_t, int64_t)>;

  void Help();
  // Claims and runs one chunk of the loop that `ticket` names; false if none
  // is left.
  bool RunChunk(uint64_t ticket);

  // The loop's number in the high half, chunks not yet claimed in the low: a
  // claim is one compare-exchange, and cannot take from a later loop.
  std::atomic<uint64_t> ticket_{0};
  std::atomic<uint32_t> chunks_done_{0};
  // The loop: written before ticket_ is published, read after a claim.
  Body* body_ = nullptr;
  int64_t count_ = 0;
  int64_t grain_ = 0;
  const Isa isa_;
  std::vector<std::thread> helpers_;
};

}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_THREAD_POOL_H_
