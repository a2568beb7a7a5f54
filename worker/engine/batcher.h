// The scheduling policy: which sequences run, which give way, and what a step
// computes.
#ifndef INVAR_WORKER_ENGINE_BATCHER_H_
#define INVAR_WORKER_ENGINE_BATCHER_H_

#include <cstdint>
#include <map>
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

// A part of a step: positions [first, first + tokens) of a sequence.
struct PlannedSlice {
  Sequence* sequence = nullptr;
  int64_t first = 0;
  int64_t tokens = 0;
  int64_t logit_rows = 0;  // of the last positions
  bool decodes = false;
};

// Sequences wait and run in the order of their arrival, and nobody overtakes.
//
// One starts, behind the shared blocks that its tokens begin with, when there
// is a running place and a block for each of its tokens, and when each that
// then runs could still take its next block, so that a start does not soon
// cost a preemption. It holds the blocks of all its tokens while it runs. When
// it grows and none is left, the last arrival that runs is preempted: it gives
// its blocks back, of which the full ones stay cached while there is room, and
// waits in its old order, to be computed again. So the first arrival of all
// always runs on, and each in turn becomes it: nobody starves.
//
// A step computes every decode first, then prefill, in the order of arrival.
// Fewer run than a step has tokens, so that decodes leave some to prefill.
//
// A step may be planned ahead, while one is in flight that is taken to end no
// sequence. Then nobody is preempted, and nobody runs whose penalties wait for
// the text: such steps are planned when nothing is in flight.
//
// None of this may show in a bit of any answer. Not thread-safe: the engine's.
class Batcher {
 public:
  Batcher(const BatchLimits& limits, BlockPool* pool);

  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t running() const { return static_cast<int64_t>(running_.size()); }
  int64_t preemptions() const { return preemptions_; }

  // `sequence`, whose max_size fits the pool, must outlive its stay here, which
  // Remove ends.
  void Add(Sequence* sequence);
  // Gives its blocks back.
  void Remove(Sequence* sequence);

  // Makes a sequence that runs wait again, without its blocks.
  void Preempt(Sequence* sequence);

  // Shares the blocks that are full up to `computed`, whose values must all be
  // finite.
  void ShareWritten(Sequence* sequence);

  // Preempts and starts what must and can, and chooses the next step's slices.
  // Empty: nothing to compute, or nothing that can be planned `ahead`.
  std::vector<PlannedSlice> Plan(bool ahead = false);

 private:
  using Arrivals = std::map<int64_t, Sequence*>;

  bool NeedsTheText() const;
  // False: `ahead`, and one would have to give way.
  bool GrowRunning(bool ahead);
  void StartWaiting(bool ahead);
  bool TryStart(Sequence* sequence);
  // Appends a slice within what is left of the step.
  void PlanSlice(Sequence* sequence, std::vector<PlannedSlice>* plan);

  const BatchLimits limits_;
  const int64_t places_;
  BlockPool* const pool_;
  Arrivals waiting_;
  Arrivals running_;
  int64_t arrivals_ = 0;
  int64_t preemptions_ = 0;
  int64_t tokens_left_ = 0;
  int64_t rows_left_ = 0;
};

}  // namespace invar

#endif  // INVAR_WORKER_ENGINE_BATCHER_H_
