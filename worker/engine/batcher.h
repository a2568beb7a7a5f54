// The scheduling policy: which sequences start, and what a step computes.
#ifndef INVAR_WORKER_ENGINE_BATCHER_H_
#define INVAR_WORKER_ENGINE_BATCHER_H_

#include <cstdint>
#include <list>
#include <vector>

#include "worker/engine/sequence.h"
#include "worker/kv/block_pool.h"

namespace invar {

struct BatchLimits {
  int64_t running_sequences = 0;
  int64_t step_tokens = 0;
  // Rows of logits in one step; at least 1. Bounds memory, never a bit.
  int64_t logit_rows = 0;
};

// A part of a step: positions [computed, computed + tokens) of a sequence.
struct PlannedSlice {
  Sequence* sequence = nullptr;
  int64_t tokens = 0;
  int64_t logit_rows = 0;  // of the last positions
};

// Sequences wait in the order of their arrival. One starts when its worst case
// of blocks can be reserved and a running place is free; nobody overtakes. It
// starts behind the shared blocks that its tokens begin with.
// A step computes every decode first, then prefill in the order of starting.
// None of this may show in a bit of any answer. Not thread-safe: the engine's.
class Batcher {
 public:
  Batcher(const BatchLimits& limits, BlockPool* pool)
      : limits_(limits), pool_(pool) {}

  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t running() const { return static_cast<int64_t>(running_.size()); }

  // `sequence` must outlive its stay here, which Remove ends.
  void Add(Sequence* sequence) { waiting_.push_back(sequence); }
  // Frees its blocks and its reservation.
  void Remove(Sequence* sequence);

  // Shares the blocks that are full up to `computed`, whose values must all be
  // finite.
  void ShareWritten(Sequence* sequence);

  // Starts what can start, chooses the next step's slices and gives each the
  // blocks that it writes to. Empty: nothing to compute.
  std::vector<PlannedSlice> Plan();

 private:
  void StartWaiting();
  // Appends a slice within what is left of the step.
  void PlanSlice(Sequence* sequence, std::vector<PlannedSlice>* plan);

  const BatchLimits limits_;
  BlockPool* const pool_;
  std::list<Sequence*> waiting_;
  // In the order of starting.
  std::list<Sequence*> running_;
  int64_t tokens_left_ = 0;
  int64_t rows_left_ = 0;
};

}  // namespace invar

#endif  // INVAR_WORKER_ENGINE_BATCHER_H_
