#include "worker/engine/batcher.h"

#include <algorithm>

namespace invar {

void Batcher::Remove(Sequence* sequence) {
  waiting_.remove(sequence);
  running_.remove(sequence);
  pool_->Release(sequence->block_ids, sequence->reserved_blocks);
  sequence->block_ids.clear();
  sequence->reserved_blocks = 0;
}

void Batcher::StartWaiting() {
  while (!waiting_.empty() && running() < limits_.running_sequences) {
    Sequence* sequence = waiting_.front();
    const int64_t blocks = BlocksFor(sequence->max_size);
    if (!pool_->Reserve(blocks)) return;
    sequence->reserved_blocks = blocks;
    waiting_.pop_front();
    running_.push_back(sequence);
  }
}

std::vector<PlannedSlice> Batcher::Plan() {
  StartWaiting();
  tokens_left_ = limits_.step_tokens;
  rows_left_ = limits_.logit_rows;
  std::vector<PlannedSlice> plan;
  for (Sequence* sequence : running_) {
    if (sequence->decoding()) PlanSlice(sequence, &plan);
  }
  // All of them fit: prefill ends only in a step with room for one decode more.
  for (Sequence* sequence : running_) {
    if (!sequence->decoding()) PlanSlice(sequence, &plan);
  }
  return plan;
}

void Batcher::PlanSlice(Sequence* sequence, std::vector<PlannedSlice>* plan) {
  const int64_t first = sequence->computed;
  int64_t count = std::min(sequence->size() - first, tokens_left_);
  int64_t rows = 0;
  if (sequence->prompt_logprobs && first < sequence->prompt_tokens) {
    // Scores every position of the prompt; the last one's row is also the one
    // to sample from.
    count = std::min({count, sequence->prompt_tokens - first, rows_left_});
    rows = count;
  } else if (sequence->wants_output() && first + count == sequence->size()) {
    rows = 1;
    if (rows_left_ == 0) {
      rows = 0;
      --count;  // The last position waits for a step with room for its row.
    }
  }
  if (count <= 0) return;
  tokens_left_ -= count;
  rows_left_ -= rows;
  while (static_cast<int64_t>(sequence->block_ids.size()) <
         BlocksFor(first + count)) {
    sequence->block_ids.push_back(pool_->Take());
  }
  plan->push_back({sequence, count, rows});
}

}  // namespace invar
