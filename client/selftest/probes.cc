#include "client/selftest/probes.h"

#include <utility>

namespace invar {
namespace {

// Well under what limits.max_top_logprobs allows by default.
constexpr int kAlternatives = 3;

}  // namespace

int Probes::Below(int below) {
  return static_cast<int>(random_.Between(0, below - 1));
}

std::vector<int32_t> Probes::Ids(int count) {
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = Below(vocab_size_);
  return ids;
}

v1::GenerateRequest Probes::Greedy(const std::vector<int32_t>& prompt) const {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Assign(prompt.begin(),
                                                     prompt.end());
  request.mutable_stopping()->set_max_tokens(sizes_.output_tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_output()->set_logprobs(true);
  request.mutable_output()->set_top_logprobs(kAlternatives);
  request.mutable_resume()->set_expected_fingerprint(fingerprint_);
  return request;
}

v1::GenerateRequest Probes::Sampled(const std::vector<int32_t>& prompt) {
  v1::GenerateRequest request = Greedy(prompt);
  v1::Sampling& sampling = *request.mutable_sampling();
  sampling.set_seed(random_.Next());
  sampling.set_temperature(0.25f + static_cast<float>(Below(8)) / 4);
  switch (Below(6)) {
    case 0:
      sampling.set_top_k(1 + Below(50));
      break;
    case 1:
      sampling.set_top_p(0.5f + static_cast<float>(Below(5)) / 10);
      break;
    case 2:
      sampling.set_min_p(static_cast<float>(1 + Below(9)) / 100);
      break;
    case 3:
      sampling.set_presence_penalty(0.5f);
      sampling.set_frequency_penalty(0.25f);
      break;
    case 4:
      sampling.set_repetition_penalty(1.25f);
      break;
    default:
      (*sampling.mutable_logit_bias())[Below(vocab_size_)] = 4;
      break;
  }
  return request;
}

v1::GenerateRequest Probes::Score(const std::vector<int32_t>& text) const {
  v1::GenerateRequest request = Greedy(text);
  request.mutable_stopping()->set_max_tokens(0);
  request.clear_output();
  request.mutable_output()->set_prompt_logprobs(true);
  return request;
}

std::vector<v1::GenerateRequest> Probes::ManyGreedy(int count) {
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < count; ++i) {
    requests.push_back(Greedy(Ids(1 + Below(sizes_.prompt_tokens_max))));
  }
  return requests;
}

std::vector<v1::GenerateRequest> Probes::ManySampled(int count) {
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < count; ++i) {
    requests.push_back(Sampled(Ids(1 + Below(sizes_.prompt_tokens_max))));
  }
  return requests;
}

std::vector<int32_t> PromptIdsOf(const v1::GenerateRequest& request) {
  return {request.token_ids().ids().begin(), request.token_ids().ids().end()};
}

}  // namespace invar
