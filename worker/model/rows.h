// What a step is asked of its rows of logits: a row is one position's logits.
#ifndef INVAR_WORKER_MODEL_ROWS_H_
#define INVAR_WORKER_MODEL_ROWS_H_

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/ops.h"

namespace invar {

enum class RowTask {
  kNone,    // computed, and not asked about
  kScore,   // the log-probability of `scored_token`
  kChoose,  // the next token
};

// An answer is a function of the row and of its own request alone: neither
// other rows nor their requests may show in it.
struct RowRequest {
  RowTask task = RowTask::kNone;
  int32_t scored_token = 0;

  // kChoose, as cpu::AdjustLogits and cpu::Sample say.
  cpu::SamplingParameters sampling;
  uint64_t seed = 0;
  uint64_t position = 0;  // of the token to choose
  // Alive until the step is over. Empty: the logits stay as they are.
  std::span<const cpu::TokenUse> uses;
  cpu::Penalties penalties;
  // Of the raw logits, whatever changed them before the choice.
  bool log_prob = false;
  int64_t likeliest = 0;  // alternatives, by (logit descending, id ascending)
};

struct TokenLogProb {
  int32_t token_id = 0;
  float log_prob = 0.0f;
};

struct RowAnswer {
  TokenLogProb token;  // log_prob where asked for
  std::vector<TokenLogProb> likeliest;
};

// The answer on the CPU. Ids >= limit are neither chosen nor alternatives.
// `logits` (vocab_size) are finite, and as before afterwards.
RowAnswer AnswerRow(std::span<float> logits, int64_t limit,
                    const RowRequest& request);

// The NumericsPlan's entries about answers: any backend gives the CPU's for the
// same logits.
void AppendRowsPlan(std::vector<std::pair<std::string, std::string>>* plan);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_ROWS_H_
