#include "worker/engine/batcher.h"

#include <algorithm>
#include <span>

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
    // A scored prompt needs the logits of every position.
    if (!sequence->prompt_logprobs) {
      sequence->block_ids = pool_->TakePrefix(sequence->tokens);
      sequence->shared_blocks =
          static_cast<int64_t>(sequence->block_ids.size());
      sequence->cached_tokens = sequence->shared_blocks * kBlockTokens;
      sequence->computed = sequence->cached_tokens;
    }
    waiting_.pop_front();
    running_.push_back(sequence);
  }
}

void Batcher::ShareWritten(Sequence* sequence) {
  while (sequence->shares_blocks &&
         sequence->shared_blocks < sequence->computed / kBlockTokens) {
    const int64_t i = sequence->shared_blocks;
    const int32_t parent = i == 0 ? kNoBlock : sequence->block_ids[i - 1];
    const int32_t shared = pool_->Share(
        sequence->block_ids[i], parent,
        std::span(sequence->tokens).subspan(i * kBlockTokens, kBlockTokens));
    if (shared == kNoBlock) {
      sequence->shares_blocks = false;
      return;
    }
    sequence->block_ids[i] = shared;
    ++sequence->shared_blocks;
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
  for (int64_t i = first / kBlockTokens; i < BlocksFor(first + count); ++i) {
    pool_->AssertWritable(sequence->block_ids[i]);
  }
  plan->push_back({sequence, count, rows});
}

}  // namespace invar
