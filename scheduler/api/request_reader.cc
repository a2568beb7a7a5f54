#include "scheduler/api/request_reader.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "common/status.h"
#include "scheduler/tokenizer/chat_format.h"

namespace invar::scheduler {
namespace {

constexpr size_t kRequestIdBytesMax = 128;

// Whether x is a number in [low, high]; NaN is not.
bool InRange(double x, double low, double high) {
  return x >= low && x <= high;
}

Error OutOfRange(absl::string_view field, double low, double high,
                 double value) {
  return BadField(field, absl::StrFormat("must lie in [%g, %g]; it is %g", low,
                                         high, value));
}

// The same for (0, high].
bool InPositiveRange(double x, double high) { return x > 0 && x <= high; }

Error OutOfPositiveRange(absl::string_view field, double high, double value) {
  return BadField(
      field, absl::StrFormat("must lie in (0, %g]; it is %g", high, value));
}

// An error of the tokenizer, which says what is wrong but not in which field.
grpc::Status TextError(absl::string_view field, const absl::Status& status) {
  if (absl::IsInvalidArgument(status)) {
    return BadField(field, absl::string_view(status.message()));
  }
  return ToGrpcStatus(status, "TOKENIZER");
}

}  // namespace

grpc::Status RequestReader::CheckRequestId(const std::string& request_id) {
  if (request_id.size() > kRequestIdBytesMax) {
    return BadField("request_id",
                    absl::StrCat("must have at most ", kRequestIdBytesMax,
                                 " bytes; it has ", request_id.size()));
  }
  for (const char c : request_id) {
    if (c < 0x20 || c > 0x7e) {
      return BadField("request_id", "must be printable ASCII");
    }
  }
  return grpc::Status::OK;
}

grpc::Status RequestReader::CheckModel(const std::string& model) const {
  if (model.empty() || model == model_name_) return grpc::Status::OK;
  return Error(absl::StatusCode::kNotFound, "NO_SUCH_MODEL",
               absl::StrCat("there is no model \"", model,
                            "\" here; the served one is \"", model_name_,
                            "\", which an empty model means too"))
      .Field("model", "is not served here");
}

grpc::Status RequestReader::CheckIds(
    const std::string& field,
    const google::protobuf::RepeatedField<int32_t>& ids) const {
  for (int i = 0; i < ids.size(); ++i) {
    if (!tokenizer_.IsKnown(ids[i])) {
      return BadField(absl::StrCat(field, "[", i, "]"),
                      absl::StrCat("must lie in [0, ", tokenizer_.vocab_size(),
                                   "); it is ", ids[i]));
    }
  }
  return grpc::Status::OK;
}

grpc::Status RequestReader::ReadText(const std::string& text,
                                     std::vector<int32_t>* ids) const {
  if (text.empty()) return BadField("text", "must not be empty");
  EncodeOptions options;
  options.parse_special = true;
  auto encoded = tokenizer_.Encode(text, options);
  if (!encoded.ok()) return TextError("text", encoded.status());
  if (tokenizer_.adds_bos() && tokenizer_.bos_id().has_value()) {
    ids->push_back(*tokenizer_.bos_id());
  }
  ids->insert(ids->end(), encoded->begin(), encoded->end());
  return grpc::Status::OK;
}

grpc::Status RequestReader::ReadChat(const v1::Chat& chat,
                                     std::vector<int32_t>* ids) const {
  std::vector<ChatMessage> messages;
  for (const auto& message : chat.messages()) {
    messages.push_back({message.role(), message.content()});
  }
  auto encoded = EncodeChat(tokenizer_, messages);
  if (!encoded.ok()) {
    // "FIELD: what is wrong", as chat_format.h says.
    const std::string text(encoded.status().message());
    const size_t colon = text.find(": ");
    if (!absl::IsInvalidArgument(encoded.status()) ||
        colon == std::string::npos) {
      return ToGrpcStatus(encoded.status(), "CHAT_FORMAT");
    }
    return BadField(text.substr(0, colon), text.substr(colon + 2));
  }
  *ids = *std::move(encoded);
  return grpc::Status::OK;
}

grpc::Status RequestReader::ReadPrompt(const v1::GenerateRequest& request,
                                       std::vector<int32_t>* ids) const {
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kText:
      return ReadText(request.text(), ids);
    case v1::GenerateRequest::kChat:
      return ReadChat(request.chat(), ids);
    case v1::GenerateRequest::kTokenIds: {
      const auto& given = request.token_ids().ids();
      if (given.empty()) return BadField("token_ids.ids", "must not be empty");
      if (auto status = CheckIds("token_ids.ids", given); !status.ok()) {
        return status;
      }
      ids->assign(given.begin(), given.end());
      return grpc::Status::OK;
    }
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  return BadField("prompt", "is not set; set text, chat or token_ids");
}

grpc::Status RequestReader::ReadSampling(const v1::Sampling& sampling,
                                         RequestSpec* spec) const {
  v1::EffectiveSampling* effective = &spec->sampling;
  effective->set_temperature(sampling.temperature());
  effective->set_top_k(sampling.top_k());
  effective->set_top_p(sampling.has_top_p() ? sampling.top_p() : 1.0f);
  effective->set_min_p(sampling.min_p());
  effective->set_presence_penalty(sampling.presence_penalty());
  effective->set_frequency_penalty(sampling.frequency_penalty());
  effective->set_repetition_penalty(
      sampling.has_repetition_penalty() ? sampling.repetition_penalty() : 1.0f);
  if (!InRange(sampling.temperature(), 0, 100)) {
    return OutOfRange("sampling.temperature", 0, 100, sampling.temperature());
  }
  if (sampling.top_k() < 0) {
    return BadField("sampling.top_k", absl::StrCat("must not be negative; it "
                                                   "is ",
                                                   sampling.top_k()));
  }
  if (!InPositiveRange(effective->top_p(), 1)) {
    return OutOfPositiveRange("sampling.top_p", 1, effective->top_p());
  }
  if (!InRange(sampling.min_p(), 0, 1)) {
    return OutOfRange("sampling.min_p", 0, 1, sampling.min_p());
  }
  if (!InRange(sampling.presence_penalty(), -2, 2)) {
    return OutOfRange("sampling.presence_penalty", -2, 2,
                      sampling.presence_penalty());
  }
  if (!InRange(sampling.frequency_penalty(), -2, 2)) {
    return OutOfRange("sampling.frequency_penalty", -2, 2,
                      sampling.frequency_penalty());
  }
  if (!InPositiveRange(effective->repetition_penalty(), 2)) {
    return OutOfPositiveRange("sampling.repetition_penalty", 2,
                              effective->repetition_penalty());
  }
  spec->answers = sampling.has_n() ? sampling.n() : 1;
  if (!InRange(spec->answers, 1, kAnswersMax)) {
    return OutOfRange("sampling.n", 1, kAnswersMax, spec->answers);
  }
  return ReadLogitBias(sampling, effective);
}

grpc::Status RequestReader::ReadLogitBias(
    const v1::Sampling& sampling, v1::EffectiveSampling* effective) const {
  constexpr char kField[] = "sampling.logit_bias";
  if (sampling.logit_bias_size() > limits_.max_logit_bias()) {
    return BadField(
        kField,
        absl::StrCat("may have at most ", limits_.max_logit_bias(),
                     " entries; there are ", sampling.logit_bias_size()));
  }
  for (const auto& [id, bias] : sampling.logit_bias()) {
    const std::string path = absl::StrCat(kField, "[", id, "]");
    if (!tokenizer_.IsKnown(id)) {
      return BadField(path, absl::StrCat("is no token id; they lie in [0, ",
                                         tokenizer_.vocab_size(), ")"));
    }
    if (!InRange(bias, -100, 100)) return OutOfRange(path, -100, 100, bias);
  }
  *effective->mutable_logit_bias() = sampling.logit_bias();
  return grpc::Status::OK;
}

grpc::Status RequestReader::ReadStopping(const v1::Stopping& stopping,
                                         RequestSpec* spec) const {
  if (stopping.has_max_tokens()) {
    if (stopping.max_tokens() < 0) {
      return BadField(
          "stopping.max_tokens",
          absl::StrCat("must not be negative; it is ", stopping.max_tokens()));
    }
    spec->max_tokens = stopping.max_tokens();
  }
  if (stopping.min_tokens() < 0 ||
      (spec->max_tokens && stopping.min_tokens() > *spec->max_tokens)) {
    return BadField("stopping.min_tokens",
                    absl::StrCat("must lie in [0, max_tokens]; it is ",
                                 stopping.min_tokens()));
  }
  spec->sampling.set_min_tokens(stopping.min_tokens());
  if (stopping.stop_strings_size() > limits_.max_stop_strings()) {
    return BadField("stopping.stop_strings",
                    absl::StrCat("may be at most ", limits_.max_stop_strings(),
                                 "; there are ", stopping.stop_strings_size()));
  }
  for (int i = 0; i < stopping.stop_strings_size(); ++i) {
    const std::string& stop = stopping.stop_strings(i);
    const int64_t size = static_cast<int64_t>(stop.size());
    if (size < 1 || size > limits_.max_stop_string_bytes()) {
      return BadField(
          absl::StrCat("stopping.stop_strings[", i, "]"),
          absl::StrCat("must have 1 to ", limits_.max_stop_string_bytes(),
                       " bytes; it has ", size));
    }
    spec->sampling.add_stop_strings(stop);
  }
  if (stopping.stop_token_ids_size() > limits_.max_stop_token_ids()) {
    return BadField(
        "stopping.stop_token_ids",
        absl::StrCat("may be at most ", limits_.max_stop_token_ids(),
                     "; there are ", stopping.stop_token_ids_size()));
  }
  if (auto status =
          CheckIds("stopping.stop_token_ids", stopping.stop_token_ids());
      !status.ok()) {
    return status;
  }
  if (!stopping.ignore_eos() && tokenizer_.eos_id().has_value()) {
    spec->sampling.add_stop_token_ids(*tokenizer_.eos_id());
  }
  spec->sampling.mutable_stop_token_ids()->MergeFrom(stopping.stop_token_ids());
  return grpc::Status::OK;
}

grpc::Status RequestReader::ReadOutput(const v1::Output& output,
                                       RequestSpec* spec) const {
  spec->logprobs = output.logprobs();
  spec->prompt_logprobs = output.prompt_logprobs();
  spec->top_logprobs = output.top_logprobs();
  if (!InRange(output.top_logprobs(), 0, limits_.max_top_logprobs())) {
    return OutOfRange("output.top_logprobs", 0, limits_.max_top_logprobs(),
                      output.top_logprobs());
  }
  if (output.top_logprobs() > 0 && !output.logprobs()) {
    return BadField("output.top_logprobs", "needs output.logprobs");
  }
  return grpc::Status::OK;
}

grpc::Status RequestReader::ReadResume(const v1::ResumeFrom& resume,
                                       RequestSpec* spec) const {
  if (resume.expected_fingerprint().empty()) {
    return BadField("resume.expected_fingerprint",
                    "is needed, so that no other numerics go on");
  }
  if (auto status = CheckIds("resume.token_ids", resume.token_ids());
      !status.ok()) {
    return status;
  }
  if (spec->answers > 1 && resume.token_ids_size() > 0) {
    return BadField("resume.token_ids",
                    "cannot say which of several answers (sampling.n) it "
                    "begins; leave it empty, and all are written again, equal "
                    "to what was received");
  }
  if (spec->max_tokens && resume.token_ids_size() > *spec->max_tokens) {
    return BadField(
        "resume.token_ids",
        absl::StrCat("must be at most max_tokens (", *spec->max_tokens,
                     "); they are ", resume.token_ids_size()));
  }
  spec->expected_fingerprint = resume.expected_fingerprint();
  spec->resume_tokens.assign(resume.token_ids().begin(),
                             resume.token_ids().end());
  return grpc::Status::OK;
}

grpc::Status RequestReader::Read(const v1::GenerateRequest& request,
                                 RequestSpec* spec) const {
  grpc::Status status = CheckModel(request.model());
  if (status.ok()) status = ReadSampling(request.sampling(), spec);
  if (status.ok()) status = ReadStopping(request.stopping(), spec);
  if (status.ok()) status = ReadOutput(request.output(), spec);
  if (status.ok() && request.has_resume()) {
    status = ReadResume(request.resume(), spec);
  }
  // Last, because it is the only part that costs something.
  if (status.ok()) status = ReadPrompt(request, &spec->prompt);
  spec->allow_divergent_resume = request.allow_divergent_resume();
  return status;
}

}  // namespace invar::scheduler
