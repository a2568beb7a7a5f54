#include "tests/contract/requests.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/types.h"
#include "tests/contract/checkpoint.h"
#include "tests/contract/random.h"
#include "worker/engine/testing/engine_harness.h"

namespace invar::contract {
namespace {

constexpr int kProbeTokens = 60;
// All others grow by three blocks meanwhile, more than there are.
constexpr int kPressedTokens = 200;
constexpr uint64_t kProbeSeed = 100;
constexpr uint64_t kTextSeed = 101;
constexpr uint64_t kLaneSeed = 102;
constexpr uint64_t kStrangerSeed = 1000;

std::vector<int32_t> RandomIds(int64_t count, uint64_t seed) {
  const int64_t known =
      ContractModelConfig(Weights::kBf16).vocab_size - kPaddingIds;
  Random random(seed);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<int32_t>(random.Below(known)));
  }
  return ids;
}

// More than one step takes, also when no other sequence decodes in it.
int TailTokens(const Cell& cell) {
  return cell.chunk + std::max(cell.batch, kMaxBatch) + 11;
}

// A mix in which every parameter has values of its own.
void SetSampling(Random& random, v1::EffectiveSampling* sampling) {
  static constexpr float kTemperatures[] = {0.0f, 0.4f, 0.8f, 1.0f, 1.7f};
  sampling->set_temperature(kTemperatures[random.Below(5)]);
  if (random.Below(3) == 0) sampling->set_top_k(1 + random.Below(40));
  if (random.Below(3) == 0) sampling->set_top_p(0.3f + random.Below(7) * 0.1f);
  if (random.Below(4) == 0) sampling->set_min_p(random.Below(5) * 0.02f);
  sampling->set_min_tokens(random.Below(4));
  if (random.Below(4) == 0) sampling->set_presence_penalty(0.6f);
  if (random.Below(4) == 0) sampling->set_frequency_penalty(0.3f);
  if (random.Below(4) == 0) sampling->set_repetition_penalty(1.2f);
  if (random.Below(4) == 0) {
    (*sampling->mutable_logit_bias())[random.Below(100)] = 2.5f;
  }
}

}  // namespace

Request Probe(const Cell& cell) {
  const int blocks = std::max(cell.prefix, 0);
  const int tokens = static_cast<int>(blocks * kBlockTokens) + TailTokens(cell);
  const int output =
      cell.preemption == Preemption::kPressure ? kPressedTokens : kProbeTokens;
  Request probe;
  probe.name = absl::StrCat("probe of ", tokens, " and ", output, " tokens");
  probe.submit = MakeSubmit(0, RandomIds(tokens, kProbeSeed), output);
  probe.submit.mutable_sampling()->set_temperature(0.8f);
  probe.submit.set_seed(kProbeSeed);
  probe.submit.set_logprobs(true);
  probe.submit.set_top_logprobs(kTopLogprobs);
  probe.submit.set_prompt_logprobs(cell.prefix == kScored);
  return probe;
}

Request ProbePrefix(const Cell& cell) {
  const int64_t tokens = cell.prefix * kBlockTokens;
  return {"prefix", MakeSubmit(0, RandomIds(tokens, kProbeSeed), 1)};
}

Request Stranger(int index, int tokens) {
  Random random(kStrangerSeed + index);
  // Mostly short; some longer than two blocks.
  const int64_t prompt = 1 + random.Below(random.Below(6) == 0 ? 140 : 30);
  Request stranger;
  stranger.name = absl::StrCat("stranger ", index);
  stranger.submit = MakeSubmit(0, RandomIds(prompt, random.Next()), tokens);
  SetSampling(random, stranger.submit.mutable_sampling());
  stranger.submit.set_seed(random.Next());
  stranger.submit.set_logprobs(true);
  stranger.submit.set_top_logprobs(random.Below(kTopLogprobs + 1));
  stranger.submit.set_prompt_logprobs(random.Below(4) == 0);
  return stranger;
}

Request Text() {
  Request text;
  text.name = "text";
  text.submit = MakeSubmit(0, RandomIds(kTextPrompt, kTextSeed),
                           kPositions + 1 - kTextPrompt);
  // Hot enough not to fall into a loop.
  text.submit.mutable_sampling()->set_temperature(1.0f);
  text.submit.set_seed(kTextSeed);
  text.submit.set_logprobs(true);
  text.submit.set_top_logprobs(kTopLogprobs);
  text.submit.set_prompt_logprobs(true);
  return text;
}

Request ScoreOf(const std::vector<int32_t>& text) {
  Request score = {"the text as a prompt", MakeSubmit(0, text, 0)};
  score.submit.set_prompt_logprobs(true);
  return score;
}

Request ResumeAt(const std::vector<int32_t>& text, int position) {
  Request resume = Text();
  resume.name = absl::StrCat("the text from position ", position);
  worker::v1::Submit& submit = resume.submit;
  submit.mutable_token_ids()->Assign(text.begin(), text.begin() + position);
  submit.set_total_tokens(position);
  submit.set_max_tokens(position + 1 - kTextPrompt);
  submit.set_prompt_logprobs(false);
  return resume;
}

std::vector<int32_t> LaneText() { return RandomIds(kLanePositions, kLaneSeed); }

Request InFull(Request request) {
  worker::v1::Submit& submit = request.submit;
  submit.mutable_sampling()->clear_stop_token_ids();
  submit.set_logprobs(true);
  submit.set_top_logprobs(kTopLogprobs);
  submit.set_prompt_logprobs(true);
  return request;
}

}  // namespace invar::contract
