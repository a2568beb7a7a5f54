// One attempt at one request, as the engine holds it.
#ifndef INVAR_WORKER_ENGINE_SEQUENCE_H_
#define INVAR_WORKER_ENGINE_SEQUENCE_H_

#include <algorithm>
#include <compare>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "invar/worker/v1/link.pb.h"
#include "kernels/ops.h"
#include "worker/engine/credits.h"
#include "worker/engine/token_uses.h"

namespace invar {

// Numbers the attaches of a worker's life, over all schedulers; never reused.
using SessionId = int64_t;

// Names a sequence within the engine.
struct SequenceId {
  SessionId session = 0;
  int64_t epoch = 0;
  int64_t request = 0;
  int32_t attempt = 0;

  SequenceId(SessionId session, const worker::v1::AttemptKey& key)
      : session(session),
        epoch(key.epoch()),
        request(key.request()),
        attempt(key.attempt()) {}

  friend auto operator<=>(const SequenceId&, const SequenceId&) = default;
};

// What a sequence that runs holds of the KV cache.
struct CacheHold {
  // Positions [0, computed) lie in the cache, in block_ids.
  int64_t computed = 0;
  std::vector<int32_t> block_ids;
  int64_t shared_blocks = 0;  // leading ones
  bool shares_blocks = true;  // False after a collision of names.
};

// What the steps in flight add to a sequence, unless one of them ends it.
struct InFlight {
  int64_t computed = 0;  // positions
  int64_t scored = 0;    // prompt tokens
  int64_t chosen = 0;    // tokens
  // The row of its step that chooses the last of them.
  int64_t chosen_row = -1;
};

// Its members say what is known. What the next step is planned from, planned_*
// and wants_*, counts the steps in flight as done.
struct Sequence {
  explicit Sequence(const SequenceId& id) : id(id) {}

  SequenceId id;
  int64_t arrival = 0;  // Ascends over an engine's life.
  worker::v1::AttemptKey key;
  CreditAmount cost;
  absl::Time deadline = absl::InfiniteFuture();

  // Prompt, output delivered before, output of this attempt.
  std::vector<int32_t> tokens;
  int64_t prompt_tokens = 0;
  int64_t submitted_tokens = 0;  // All but the output of this attempt.
  // Tokens at most: the prompt and max_tokens, or the context.
  int64_t max_size = 0;
  bool stopped = false;  // The last token is a stop id.

  cpu::SamplingParameters sampling;
  TokenUses uses;
  uint64_t seed = 0;
  int64_t min_tokens = 0;
  std::vector<int32_t> stop_token_ids;  // ascending
  bool logprobs = false;
  int64_t top_logprobs = 0;
  // Prompt tokens whose log-probability is reported or not asked for. Nothing
  // comes before the first token, so it is never asked for.
  int64_t scored_tokens = 0;

  // Empty unless it runs: a preempted sequence begins again from nothing.
  CacheHold hold;
  InFlight in_flight;
  // Positions that the cache held at the first start.
  std::optional<int64_t> cached_tokens;

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  int64_t output_tokens() const { return size() - prompt_tokens; }
  // Nothing is left to compute, nor in flight.
  bool finished() const {
    return (stopped || size() >= max_size) && scored_tokens >= prompt_tokens;
  }

  int64_t planned_size() const { return size() + in_flight.chosen; }
  int64_t planned_computed() const {
    return hold.computed + in_flight.computed;
  }
  int64_t planned_scored() const { return scored_tokens + in_flight.scored; }
  bool wants_output() const { return !stopped && planned_size() < max_size; }
  bool wants_scores() const { return planned_scored() < prompt_tokens; }
  bool wants_step() const { return wants_output() || wants_scores(); }
  // One token to compute, which this attempt has sampled.
  bool decoding() const {
    return planned_size() > submitted_tokens &&
           planned_computed() + 1 == planned_size();
  }
  // Until here the cache is as good as computing: the next position whose
  // logits are wanted lies behind it.
  int64_t cacheable_tokens() const {
    return wants_scores() ? planned_scored() : planned_size();
  }

  // Sets `stopped` from the last token, if it is output.
  void CheckStop() {
    stopped = output_tokens() > min_tokens &&
              std::binary_search(stop_token_ids.begin(), stop_token_ids.end(),
                                 tokens.back());
  }
};

}  // namespace invar

#endif  // INVAR_WORKER_ENGINE_SEQUENCE_H_
