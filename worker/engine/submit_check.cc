#include "worker/engine/submit_check.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace invar {
namespace {

using invar::v1::EffectiveSampling;
using invar::worker::v1::Submit;

absl::Status Invalid(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(field, " ", what));
}

bool InRange(float value, float least, float most) {
  return value >= least && value <= most;  // False for NaN.
}

absl::Status CheckSampling(const EffectiveSampling& sampling) {
  if (!InRange(sampling.temperature(), 0.0f, 100.0f)) {
    return Invalid("sampling.temperature", "must be in [0, 100]");
  }
  if (sampling.top_k() < 0) {
    return Invalid("sampling.top_k", "must not be negative");
  }
  if (!InRange(sampling.top_p(), 0.0f, 1.0f) || sampling.top_p() == 0.0f) {
    return Invalid("sampling.top_p", "must be in (0, 1]");
  }
  if (!InRange(sampling.min_p(), 0.0f, 1.0f)) {
    return Invalid("sampling.min_p", "must be in [0, 1]");
  }
  if (sampling.min_tokens() < 0) {
    return Invalid("sampling.min_tokens", "must not be negative");
  }
  if (!InRange(sampling.presence_penalty(), -2.0f, 2.0f)) {
    return Invalid("sampling.presence_penalty", "must be in [-2, 2]");
  }
  if (!InRange(sampling.frequency_penalty(), -2.0f, 2.0f)) {
    return Invalid("sampling.frequency_penalty", "must be in [-2, 2]");
  }
  if (!InRange(sampling.repetition_penalty(), 0.0f, 2.0f) ||
      sampling.repetition_penalty() == 0.0f) {
    return Invalid("sampling.repetition_penalty", "must be in (0, 2]");
  }
  return absl::OkStatus();
}

template <typename Ids>
absl::Status CheckIds(absl::string_view field, const Ids& ids,
                      int64_t vocab_size) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab_size) continue;
    return Invalid(absl::StrCat(field, "[", i, "]"),
                   absl::StrCat("is ", ids[i], "; the vocabulary is [0, ",
                                vocab_size, ")"));
  }
  return absl::OkStatus();
}

absl::Status CheckLogitBias(const EffectiveSampling& sampling,
                            int64_t vocab_size) {
  for (const auto& [id, bias] : sampling.logit_bias()) {
    const std::string field = absl::StrCat("sampling.logit_bias[", id, "]");
    if (id < 0 || id >= vocab_size) {
      return Invalid(field, absl::StrCat("is of no token; the vocabulary is "
                                         "[0, ",
                                         vocab_size, ")"));
    }
    if (!InRange(bias, -100.0f, 100.0f)) {
      return Invalid(field, "must be in [-100, 100]");
    }
  }
  return absl::OkStatus();
}

// Needs the sequence's tokens.
TokenUses MakeTokenUses(const EffectiveSampling& sampling,
                        const Sequence& sequence) {
  TokenUses uses({sampling.repetition_penalty(), sampling.frequency_penalty(),
                  sampling.presence_penalty()});
  for (const auto& [id, bias] : sampling.logit_bias()) uses.SetBias(id, bias);
  for (int64_t i = 0; i < sequence.size(); ++i) {
    if (i < sequence.prompt_tokens) {
      uses.AddPrompt(sequence.tokens[i]);
    } else {
      uses.AddOutput(sequence.tokens[i]);
    }
  }
  return uses;
}

}  // namespace

absl::Status CheckSubmitCounts(const Submit& submit,
                               const SubmitLimits& limits) {
  if (submit.prompt_tokens() < 1) {
    return Invalid("prompt_tokens", "must be at least 1");
  }
  if (submit.total_tokens() < submit.prompt_tokens()) {
    return Invalid("total_tokens", "must be at least prompt_tokens");
  }
  if (submit.total_tokens() > limits.context_tokens) {
    return Invalid("total_tokens",
                   absl::StrCat("is ", submit.total_tokens(),
                                "; the context holds ", limits.context_tokens));
  }
  if (submit.token_ids_size() > submit.total_tokens()) {
    return Invalid("token_ids", "are more than total_tokens");
  }
  if (submit.max_tokens() < 0) {
    return Invalid("max_tokens", "must not be negative");
  }
  if (submit.total_tokens() - submit.prompt_tokens() > submit.max_tokens()) {
    return Invalid("total_tokens", "has more output than max_tokens");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Sequence>> MakeSequence(
    SessionId session, const Submit& submit, absl::Time received,
    const SubmitLimits& limits) {
  absl::Status status = CheckSubmitCounts(submit, limits);
  if (status.ok() && submit.token_ids_size() != submit.total_tokens()) {
    status = Invalid("token_ids", "are fewer than total_tokens");
  }
  if (status.ok()) {
    status = CheckIds("token_ids", submit.token_ids(), limits.vocab_size);
  }
  if (status.ok()) {
    status = CheckIds("sampling.stop_token_ids",
                      submit.sampling().stop_token_ids(), limits.vocab_size);
  }
  if (status.ok()) status = CheckSampling(submit.sampling());
  if (status.ok()) {
    status = CheckLogitBias(submit.sampling(), limits.vocab_size);
  }
  if (status.ok() && (submit.top_logprobs() < 0 ||
                      submit.top_logprobs() > limits.top_logprobs)) {
    status = Invalid("top_logprobs",
                     absl::StrCat("must be in [0, ", limits.top_logprobs, "]"));
  }
  if (status.ok() && submit.deadline_ms() < 0) {
    status = Invalid("deadline_ms", "must not be negative");
  }
  if (!status.ok()) return status;

  auto sequence = std::make_unique<Sequence>(SequenceId(session, submit.key()));
  sequence->key = submit.key();
  sequence->cost = SubmitCost(submit);
  if (submit.deadline_ms() > 0) {
    sequence->deadline = received + absl::Milliseconds(submit.deadline_ms());
  }
  sequence->tokens.assign(submit.token_ids().begin(), submit.token_ids().end());
  sequence->prompt_tokens = submit.prompt_tokens();
  sequence->submitted_tokens = submit.total_tokens();
  sequence->max_size =
      std::min(int64_t{submit.prompt_tokens()} + submit.max_tokens(),
               limits.context_tokens);
  const EffectiveSampling& sampling = submit.sampling();
  sequence->sampling = {sampling.temperature(), sampling.top_k(),
                        sampling.top_p(), sampling.min_p()};
  sequence->uses = MakeTokenUses(sampling, *sequence);
  sequence->seed = submit.seed();
  sequence->min_tokens = sampling.min_tokens();
  sequence->stop_token_ids.assign(sampling.stop_token_ids().begin(),
                                  sampling.stop_token_ids().end());
  std::sort(sequence->stop_token_ids.begin(), sequence->stop_token_ids.end());
  sequence->CheckStop();
  sequence->logprobs = submit.logprobs();
  sequence->top_logprobs = submit.top_logprobs();
  sequence->scored_tokens =
      submit.prompt_logprobs() ? 1 : sequence->prompt_tokens;
  return sequence;
}

}  // namespace invar
