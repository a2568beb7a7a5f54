#include "worker/engine/batcher.h"

#include <algorithm>
#include <iterator>
#include <span>
#include <utility>

namespace invar {
namespace {

int64_t HeldBlocks(const Sequence& sequence) {
  return static_cast<int64_t>(sequence.hold.block_ids.size());
}

}  // namespace

Batcher::Batcher(const BatchLimits& limits, BlockPool* pool)
    : limits_(limits),
      places_(std::max<int64_t>(
          1, std::min(limits.running_sequences, limits.step_tokens - 1))),
      pool_(pool) {}

void Batcher::Add(Sequence* sequence) {
  sequence->arrival = ++arrivals_;
  waiting_.emplace(sequence->arrival, sequence);
}

void Batcher::Remove(Sequence* sequence) {
  waiting_.erase(sequence->arrival);
  running_.erase(sequence->arrival);
  pool_->Release(sequence->hold.block_ids);
  sequence->hold = CacheHold();
}

void Batcher::Preempt(Sequence* sequence) {
  if (running_.erase(sequence->arrival) == 0) return;
  pool_->Release(sequence->hold.block_ids);
  sequence->hold = CacheHold();
  waiting_.emplace(sequence->arrival, sequence);
  ++preemptions_;
}

// The first that waits, too: it would wait on while steps are planned ahead.
bool Batcher::NeedsTheText() const {
  if (!waiting_.empty() && !waiting_.begin()->second->uses.neutral()) {
    return true;
  }
  return std::any_of(running_.begin(), running_.end(),
                     [](const auto& at) { return !at.second->uses.neutral(); });
}

bool Batcher::GrowRunning(bool ahead) {
  for (auto at = running_.begin(); at != running_.end(); ++at) {
    Sequence* sequence = at->second;
    if (!sequence->wants_step()) continue;  // It ends with what is in flight.
    while (HeldBlocks(*sequence) < BlocksFor(sequence->planned_size())) {
      if (pool_->available() > 0) {
        sequence->hold.block_ids.push_back(pool_->Take());
        continue;
      }
      if (ahead) return false;
      Sequence* last = running_.rbegin()->second;
      Preempt(last);
      if (last == sequence) return true;
    }
  }
  return true;
}

void Batcher::StartWaiting(bool ahead) {
  while (!waiting_.empty() && running() < places_) {
    Sequence* first = waiting_.begin()->second;
    if (ahead && !first->uses.neutral()) return;
    if (!TryStart(first)) return;
  }
}

bool Batcher::TryStart(Sequence* sequence) {
  CacheHold hold;
  hold.block_ids = pool_->TakePrefix(
      std::span(sequence->tokens).first(sequence->cacheable_tokens()));
  hold.shared_blocks = static_cast<int64_t>(hold.block_ids.size());
  hold.computed = hold.shared_blocks * kBlockTokens;

  const int64_t blocks = BlocksFor(sequence->size());
  int64_t growing = blocks < BlocksFor(sequence->max_size) ? 1 : 0;
  for (const auto& [arrival, other] : running_) {
    if (HeldBlocks(*other) < BlocksFor(other->max_size)) ++growing;
  }
  // Alone, it finds every block there is.
  const int64_t spare = running_.empty() ? 0 : growing;
  if (pool_->available() < blocks - hold.shared_blocks + spare) {
    pool_->Release(hold.block_ids);
    return false;
  }
  while (static_cast<int64_t>(hold.block_ids.size()) < blocks) {
    hold.block_ids.push_back(pool_->Take());
  }
  if (!sequence->cached_tokens.has_value()) {
    sequence->cached_tokens = hold.computed;
  }
  sequence->hold = std::move(hold);
  waiting_.erase(sequence->arrival);
  running_.emplace(sequence->arrival, sequence);
  return true;
}

void Batcher::ShareWritten(Sequence* sequence) {
  CacheHold& hold = sequence->hold;
  while (hold.shares_blocks &&
         hold.shared_blocks < hold.computed / kBlockTokens) {
    const int64_t i = hold.shared_blocks;
    const int32_t parent = i == 0 ? kNoBlock : hold.block_ids[i - 1];
    const int32_t shared = pool_->Share(
        hold.block_ids[i], parent,
        std::span(sequence->tokens).subspan(i * kBlockTokens, kBlockTokens));
    if (shared == kNoBlock) {
      hold.shares_blocks = false;
      return;
    }
    hold.block_ids[i] = shared;
    ++hold.shared_blocks;
  }
}

std::vector<PlannedSlice> Batcher::Plan(bool ahead) {
  if (ahead && NeedsTheText()) return {};
  if (!GrowRunning(ahead)) return {};
  StartWaiting(ahead);
  tokens_left_ = limits_.step_tokens;
  rows_left_ = limits_.logit_rows;
  std::vector<PlannedSlice> plan;
  for (const auto& [arrival, sequence] : running_) {
    if (sequence->decoding()) PlanSlice(sequence, &plan);
  }
  for (const auto& [arrival, sequence] : running_) {
    if (!sequence->decoding()) PlanSlice(sequence, &plan);
  }
  return plan;
}

void Batcher::PlanSlice(Sequence* sequence, std::vector<PlannedSlice>* plan) {
  if (!sequence->wants_step()) return;
  const int64_t first = sequence->planned_computed();
  int64_t count = std::min(sequence->planned_size() - first, tokens_left_);
  int64_t rows = 0;
  if (sequence->wants_scores()) {
    // A row scores the token after its position. Where the prompt is all there
    // is, the last position's row is also the one to sample from.
    const int64_t without_row = sequence->planned_scored() - 1 - first;
    count = std::min(
        {count, sequence->prompt_tokens - first, without_row + rows_left_});
    rows = std::max<int64_t>(0, count - without_row);
  } else if (sequence->wants_output() &&
             first + count == sequence->planned_size()) {
    rows = 1;
    if (rows_left_ == 0) {
      rows = 0;
      --count;  // The last position waits for a step with room for its row.
    }
  }
  if (count <= 0) return;
  tokens_left_ -= count;
  rows_left_ -= rows;
  for (int64_t i = first / kBlockTokens; i < BlocksFor(first + count); ++i) {
    pool_->AssertWritable(sequence->hold.block_ids[i]);
  }
  plan->push_back({sequence, first, count, rows, sequence->decoding()});
}

}  // namespace invar
