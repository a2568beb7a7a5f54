#include "client/cli/json.h"

#include <cmath>
#include <cstdlib>

#include "absl/strings/str_format.h"

namespace invar {
namespace {

using Json = nlohmann::ordered_json;

// JSON has no NaN and no infinities: null.
Json Number(float value) {
  if (!std::isfinite(value)) return nullptr;
  return JsonNumber(value);
}

template <typename Numbers>
Json NumberList(const Numbers& numbers) {
  Json list = Json::array();
  for (const float number : numbers) list.push_back(Number(number));
  return list;
}

template <typename Values>
Json List(const Values& values) {
  Json list = Json::array();
  for (const auto& value : values) list.push_back(value);
  return list;
}

Json SamplingToJson(const v1::EffectiveSampling& sampling) {
  Json bias = Json::object();
  // A protobuf map has no order of its own.
  for (const auto& [id, value] : std::map<int32_t, float>(
           sampling.logit_bias().begin(), sampling.logit_bias().end())) {
    bias[std::to_string(id)] = Number(value);
  }
  return {{"temperature", Number(sampling.temperature())},
          {"top_k", sampling.top_k()},
          {"top_p", Number(sampling.top_p())},
          {"min_p", Number(sampling.min_p())},
          {"presence_penalty", Number(sampling.presence_penalty())},
          {"frequency_penalty", Number(sampling.frequency_penalty())},
          {"repetition_penalty", Number(sampling.repetition_penalty())},
          {"logit_bias", bias},
          {"max_tokens", sampling.max_tokens()},
          {"min_tokens", sampling.min_tokens()},
          {"stop_strings", List(sampling.stop_strings())},
          {"stop_token_ids", List(sampling.stop_token_ids())}};
}

Json ReceiptToJson(const v1::Receipt& receipt) {
  return {{"fingerprint", receipt.fingerprint()},
          {"model", receipt.model()},
          {"request_id", receipt.request_id()},
          {"index", receipt.index()},
          {"seed", receipt.seed()},
          {"sampling", SamplingToJson(receipt.sampling())},
          {"prompt_digest", receipt.prompt_digest()},
          {"output_digest", receipt.output_digest()}};
}

Json TopLogprobsToJson(const v1::Answer& answer) {
  Json positions = Json::array();
  for (const v1::TopLogprobs& top : answer.top_logprobs()) {
    positions.push_back({{"token_ids", List(top.token_ids())},
                         {"logprobs", NumberList(top.logprobs())}});
  }
  return positions;
}

// Adds an answer's fields to `json`.
void AddAnswer(const v1::Answer& answer, Json& json) {
  const v1::Finish& finish = answer.completion().finish();
  json["text"] = answer.text();
  json["token_ids"] = List(answer.token_ids());
  json["finish_reason"] = v1::Finish::Reason_Name(finish.reason());
  if (!finish.stop_string().empty()) json["stop_string"] = finish.stop_string();
  if (finish.has_stop_token_id()) {
    json["stop_token_id"] = finish.stop_token_id();
  }
  if (!answer.logprobs().empty()) {
    json["logprobs"] = NumberList(answer.logprobs());
  }
  if (!answer.top_logprobs().empty()) {
    json["top_logprobs"] = TopLogprobsToJson(answer);
  }
  json["receipt"] = ReceiptToJson(answer.completion().receipt());
}

}  // namespace

double JsonNumber(float value) {
  // 9 digits tell every float from its neighbours. As the nearest double to
  // those digits, the number prints as them and not as the 17 of the float's
  // exact value.
  return std::strtod(absl::StrFormat("%.9g", value).c_str(), nullptr);
}

nlohmann::ordered_json ToJson(const v1::GenerateOnceResponse& response,
                              const GenerateMetadata& metadata) {
  Json json;
  json["request_id"] = metadata.request_id;
  json["seed"] = metadata.seed;
  if (response.answers_size() == 1) {
    AddAnswer(response.answers(0), json);
  } else {
    json["answers"] = Json::array();
    for (const v1::Answer& answer : response.answers()) {
      Json& entry = json["answers"].emplace_back();
      entry["index"] = answer.completion().index();
      AddAnswer(answer, entry);
    }
  }
  if (!response.prompt_logprobs().empty()) {
    json["prompt_logprobs"] = NumberList(response.prompt_logprobs());
  }
  json["usage"] = {{"prompt_tokens", response.usage().prompt_tokens()},
                   {"cached_tokens", response.usage().cached_tokens()},
                   {"output_tokens", response.usage().output_tokens()}};
  return json;
}

std::string Dump(const nlohmann::ordered_json& json) {
  return json.dump(/*indent=*/-1, ' ', /*ensure_ascii=*/false,
                   Json::error_handler_t::replace);
}

}  // namespace invar
