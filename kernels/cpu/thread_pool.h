// Threads that share out the iterations of a loop.
//
// A loop's result must not depend on which thread runs an iteration or when:
// iterations write apart and sum nothing across. So the pool may hand them out
// in any order, and the number of threads never moves a bit.
#ifndef INVAR_KERNELS_CPU_THREAD_POOL_H_
#define INVAR_KERNELS_CPU_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <memory>
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

  int threads() const { return threads_; }

  Isa isa() const { return isa_; }

  // Calls body(begin, end) over [0, count) in chunks of `grain` iterations,
  // the caller taking part, and returns when all are done. A helper that the
  // system has not scheduled delays nothing: chunks are claimed, not assigned.
  void ParallelFor(int64_t count, int64_t grain,
                   absl::FunctionRef<void(int64_t, int64_t)> body);

  // ParallelFor over rows, in chunks that are worth a claim, if all together
  // are worth waking anybody. work: of a row, about, in elements that are
  // loaded, scaled and stored.
  void ParallelForRows(int64_t rows, int64_t work,
                       absl::FunctionRef<void(int64_t, int64_t)> body);

  // Calls body(i, team) for every i of [0, teams) at once, each `team` a pool
  // of threads() / teams of these threads, and returns when all are done. A
  // thread whose team is done joins another. `teams` divides threads().
  void ForTeams(int teams, absl::FunctionRef<void(int64_t, ThreadPool&)> body);

 private:
  using Body = absl::FunctionRef<void(int64_t, int64_t)>;

  struct NoThreads {};
  // A team of another pool, whose threads call Help.
  ThreadPool(NoThreads, Isa isa) : isa_(isa) {}

  // Runs chunks of loops as they come, until the pool or the team ends.
  void Help();
  // Sleeps until a loop or the end is published, if none is yet.
  void Sleep();
  // Publishes a loop or the end.
  void Publish(uint64_t ticket);
  // Claims and runs one chunk of the loop that `ticket` names; false if none
  // is left.
  bool RunChunk(uint64_t ticket);

  // The loop's number in the high half, chunks not yet claimed in the low: a
  // claim is one compare-exchange, and cannot take from a later loop.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  // Whether a helper sleeps or is about to, unless it has been woken since, and
  // how often helpers were woken. Not ticket_.wait: the library keeps few lists
  // of those who wait, so that a loop would wake other pools' helpers.
  alignas(64) std::atomic<bool> asleep_{false};
  std::atomic<int> wakes_{0};
  // Apart from what waiting threads read.
  alignas(64) std::atomic<uint32_t> chunks_done_{0};
  // The loop: written before ticket_ is published, read after a claim.
  alignas(64) Body* body_ = nullptr;
  int64_t count_ = 0;
  int64_t grain_ = 0;
  int threads_ = 1;
  const Isa isa_;
  std::vector<std::thread> helpers_;
  std::vector<std::unique_ptr<ThreadPool>> teams_;  // grows
};

}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_THREAD_POOL_H_
