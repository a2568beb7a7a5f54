#include "client/toy_model.h"

#include <algorithm>
#include <bit>

#include "absl/time/clock.h"
#include "common/digest.h"
#include "common/numerics.h"
#include "common/seed.h"

namespace invar {
namespace {

constexpr int32_t kVocabulary = 256;
constexpr int32_t kLetters = 26;
constexpr int32_t kBlock = 64;
// Long enough for requests that are sent together to meet.
constexpr absl::Duration kPause = absl::Milliseconds(1);

// A number that depends on every bit of what it is made of.
uint64_t Mix(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15u;
  hash *= 0xff51afd7ed558ccdu;
  hash ^= hash >> 32;
  hash *= 0xc4ceb9fe1a85ec53u;
  return hash ^ (hash >> 29);
}

uint64_t HashOf(std::span<const int32_t> ids, uint64_t salt) {
  uint64_t hash = Mix(1, salt);
  for (const int32_t id : ids) hash = Mix(hash, id);
  return hash;
}

// ln p(id | those before).
float LogProbability(uint64_t before, int32_t id) {
  return -static_cast<float>(Mix(before, id) % 100'000) / 7777.0f;
}

std::vector<int32_t> PromptIds(const v1::GenerateRequest& request) {
  if (request.has_token_ids()) {
    return {request.token_ids().ids().begin(), request.token_ids().ids().end()};
  }
  const std::string text = PromptOf(request);
  return {text.begin(), text.end()};
}

v1::EffectiveSampling Effective(const v1::GenerateRequest& request) {
  const v1::Sampling& sampling = request.sampling();
  v1::EffectiveSampling effective;
  effective.set_temperature(sampling.temperature());
  effective.set_top_k(sampling.top_k());
  effective.set_top_p(sampling.has_top_p() ? sampling.top_p() : 1);
  effective.set_min_p(sampling.min_p());
  effective.set_presence_penalty(sampling.presence_penalty());
  effective.set_frequency_penalty(sampling.frequency_penalty());
  effective.set_repetition_penalty(
      sampling.has_repetition_penalty() ? sampling.repetition_penalty() : 1);
  *effective.mutable_logit_bias() = sampling.logit_bias();
  const v1::Stopping& stopping = request.stopping();
  effective.set_max_tokens(stopping.has_max_tokens() ? stopping.max_tokens()
                                                     : 16);
  effective.set_min_tokens(stopping.min_tokens());
  *effective.mutable_stop_strings() = stopping.stop_strings();
  *effective.mutable_stop_token_ids() = stopping.stop_token_ids();
  return effective;
}

uint64_t SeedOf(const v1::GenerateRequest& request) {
  return request.sampling().has_seed()
             ? request.sampling().seed()
             : SeedFromRequestId(request.request_id());
}

}  // namespace

v1::Numerics ToyModel::Numerics() {
  v1::Numerics numerics;
  auto* entry = numerics.mutable_plan()->add_entries();
  entry->set_name("mode");
  entry->set_value("DETERMINISTIC");
  numerics.set_weights_digest("toy");
  numerics.set_fingerprint(Fingerprint(numerics));
  return numerics;
}

FakeBehaviour ToyModel::Behaviour() {
  FakeBehaviour behaviour;
  behaviour.respond = [this](const v1::GenerateRequest& request,
                             bool streamed) {
    return Respond(request, streamed);
  };
  behaviour.fingerprint = Numerics().fingerprint();
  behaviour.info.set_model("toy");
  behaviour.info.set_vocab_size(kVocabulary);
  behaviour.info.set_max_context_tokens(4096);
  v1::Pool* pool = behaviour.info.add_pools();
  *pool->mutable_numerics() = Numerics();
  pool->set_workers(1);
  return behaviour;
}

int32_t ToyModel::LookUp(const v1::GenerateRequest& request,
                         const std::vector<int32_t>& prompt) {
  absl::MutexLock lock(&mutex_);
  int32_t cached = 0;
  for (size_t end = kBlock; end < prompt.size(); end += kBlock) {
    const auto [place, is_new] =
        cache_.insert({prompt.begin(), prompt.begin() + end});
    if (!is_new) cached = static_cast<int32_t>(end);
  }
  return request.output().prompt_logprobs() ? 0 : cached;
}

v1::Answer ToyModel::Write(const v1::GenerateRequest& request,
                           const std::vector<int32_t>& prompt, int32_t index,
                           uint64_t salt) const {
  v1::Answer answer;
  v1::Completion& completion = *answer.mutable_completion();
  completion.set_index(index);
  completion.mutable_finish()->set_reason(v1::Finish::LENGTH);
  v1::Receipt& receipt = *completion.mutable_receipt();
  receipt.set_seed(AnswerSeed(SeedOf(request), index));
  *receipt.mutable_sampling() = Effective(request);
  // What draws a token besides the text so far.
  const float temperature = request.sampling().temperature();
  const uint64_t draws =
      temperature == 0
          ? 0
          : Mix(receipt.seed(), std::bit_cast<uint32_t>(temperature));
  const auto& resumed = request.resume().token_ids();
  std::vector<int32_t> ids = prompt;
  ids.insert(ids.end(), resumed.begin(), resumed.end());
  std::string whole(resumed.begin(), resumed.end());
  const size_t end = prompt.size() + receipt.sampling().max_tokens();
  uint64_t before = HashOf(ids, salt);
  for (; ids.size() < end && completion.finish().stop_string().empty();
       before = Mix(before, ids.back())) {
    const auto id = static_cast<int32_t>('a' + Mix(before, draws) % kLetters);
    ids.push_back(id);
    answer.add_token_ids(id);
    answer.mutable_text()->push_back(static_cast<char>(id));
    whole.push_back(static_cast<char>(id));
    if (request.output().logprobs()) {
      answer.add_logprobs(LogProbability(before, id));
    }
    if (request.output().top_logprobs() > 0) {
      v1::TopLogprobs& top = *answer.add_top_logprobs();
      for (int32_t k = 0; k < request.output().top_logprobs(); ++k) {
        top.add_token_ids('a' + k);
        top.add_logprobs(LogProbability(before, 'a' + k));
      }
    }
    for (const std::string& stop : request.stopping().stop_strings()) {
      if (!whole.ends_with(stop)) continue;
      completion.mutable_finish()->set_reason(v1::Finish::STOP);
      completion.mutable_finish()->set_stop_string(stop);
      answer.mutable_text()->resize(
          answer.text().size() - std::min(stop.size(), answer.text().size()));
    }
  }
  receipt.set_output_digest(
      TokenDigest(std::span<const int32_t>(ids).subspan(prompt.size())));
  receipt.set_prompt_digest(TokenDigest(prompt));
  receipt.set_fingerprint(Numerics().fingerprint());
  receipt.set_request_id(request.request_id());
  receipt.set_index(index);
  receipt.set_model("toy");
  return answer;
}

v1::GenerateOnceResponse ToyModel::Respond(const v1::GenerateRequest& request,
                                           bool streamed) {
  const std::vector<int32_t> prompt = PromptIds(request);
  ToySituation situation{request};
  situation.prompt_tokens = static_cast<int32_t>(prompt.size());
  situation.cached_tokens = LookUp(request, prompt);
  situation.streamed = streamed;
  {
    absl::MutexLock lock(&mutex_);
    most_in_flight_ = std::max(++in_flight_, most_in_flight_);
  }
  if (defect_) absl::SleepFor(kPause);
  {
    absl::MutexLock lock(&mutex_);
    situation.in_flight = most_in_flight_;
    if (--in_flight_ == 0) most_in_flight_ = 0;
  }
  const uint64_t salt = defect_ && defect_(situation) ? 1 : 0;

  v1::GenerateOnceResponse response;
  response.set_request_id(request.request_id());
  const int n = request.sampling().has_n() ? request.sampling().n() : 1;
  for (int32_t index = 0; index < n; ++index) {
    *response.add_answers() = Write(request, prompt, index, salt);
  }
  v1::Usage& usage = *response.mutable_usage();
  usage.set_prompt_tokens(situation.prompt_tokens);
  usage.set_cached_tokens(situation.cached_tokens);
  if (request.output().prompt_logprobs()) {
    uint64_t before = HashOf({prompt.data(), 1}, salt);
    for (size_t i = 1; i < prompt.size(); ++i) {
      response.add_prompt_logprobs(LogProbability(before, prompt[i]));
      before = Mix(before, prompt[i]);
    }
  }
  return response;
}

}  // namespace invar
