#include "scheduler/api/answer.h"

#include <algorithm>
#include <utility>

#include "common/digest.h"
#include "common/status.h"

namespace invar::scheduler {

Answer::Answer(std::shared_ptr<const RequestSpec> spec,
               const Tokenizer& tokenizer, StopMatcher stops, Options options,
               std::shared_ptr<AnswerSink> sink)
    : spec_(std::move(spec)),
      decoder_(tokenizer, options.skip_special_tokens),
      stops_(std::move(stops)),
      options_(std::move(options)),
      sink_(std::move(sink)),
      resumed_(spec_->resume_tokens.size()) {
  // The client has the resumed text; it only sets the scene for the rest.
  std::string already_sent;
  AppendTokens(spec_->resume_tokens, &already_sent);
}

int Answer::AppendTokens(std::span<const int32_t> ids, std::string* text) {
  int used = 0;
  for (const int32_t id : ids) {
    ++used;
    output_.push_back(id);
    // A stop id that ends the answer is no text, whatever its token says.
    const auto& stop_ids = spec_->sampling.stop_token_ids();
    const bool is_stop =
        std::find(stop_ids.begin(), stop_ids.end(), id) != stop_ids.end() &&
        static_cast<int32_t>(output_.size()) > spec_->sampling.min_tokens();
    if (is_stop && !options_.include_stop_text) continue;
    const std::string piece = decoder_.Append(id);
    if (static_cast<int32_t>(output_.size()) <= spec_->sampling.min_tokens()) {
      text->append(piece);  // Too early for a stop string.
      continue;
    }
    StopMatcher::Release release = stops_.Append(piece);
    text->append(release.text);
    if (release.matched) break;
  }
  return used;
}

void Answer::Handle(const Begin& action) {
  fingerprint_ = action.fingerprint;
  max_tokens_ = action.max_tokens;
}

bool Answer::Handle(const Deliver& action) {
  if (ended_) return false;
  const auto& report = action.report;
  cached_tokens_ = std::max(cached_tokens_, report.cached_tokens());
  if (report.prompt_logprobs_size() > 0) {
    v1::GenerateResponse event;
    auto* page = event.mutable_prompt_logprobs();
    page->set_position(report.prompt_position());
    *page->mutable_logprobs() = report.prompt_logprobs();
    sink_->OnEvent(std::move(event));
  }
  if (report.token_ids_size() == 0) return false;
  v1::GenerateResponse event;
  auto* delta = event.mutable_delta();
  delta->set_position(report.position());
  const int used = AppendTokens(
      {report.token_ids().data(), static_cast<size_t>(report.token_ids_size())},
      delta->mutable_text());
  for (int i = 0; i < used; ++i) {
    delta->add_token_ids(report.token_ids(i));
    if (i < report.logprobs_size()) delta->add_logprobs(report.logprobs(i));
    if (i < report.alternatives_size()) {
      auto* top = delta->add_top_logprobs();
      *top->mutable_token_ids() = report.alternatives(i).token_ids();
      *top->mutable_logprobs() = report.alternatives(i).logprobs();
    }
  }
  sink_->OnEvent(std::move(event));
  if (!stops_.matched_stop().has_value()) return false;
  End(v1::Finish::STOP);
  return true;
}

void Answer::Handle(const Finish& action) {
  if (ended_) return;
  if (action.status.ok()) {
    End(action.reason == worker::v1::Terminal::STOP ? v1::Finish::STOP
                                                    : v1::Finish::LENGTH);
    return;
  }
  ended_ = true;
  Error error(action.status.code(), action.error_reason,
              absl::string_view(action.status.message()));
  if (action.retry_after > absl::ZeroDuration()) {
    error.RetryAfter(action.retry_after);
  }
  sink_->OnEnd(error);
}

void Answer::End(v1::Finish::Reason reason) {
  ended_ = true;
  if (!stops_.matched_stop().has_value()) {
    // What was held back is certain now.
    v1::GenerateResponse event;
    auto* delta = event.mutable_delta();
    delta->set_position(
        static_cast<int32_t>(spec_->prompt.size() + output_.size()));
    StopMatcher::Release last = stops_.Append(decoder_.Finish());
    delta->set_text(last.text + stops_.Finish().text);
    if (!delta->text().empty()) sink_->OnEvent(std::move(event));
  }
  v1::GenerateResponse event;
  auto* final = event.mutable_final();
  auto* completion = final->add_completions();
  completion->mutable_finish()->set_reason(reason);
  if (const auto stop = stops_.matched_stop()) {
    completion->mutable_finish()->set_reason(v1::Finish::STOP);
    completion->mutable_finish()->set_stop_string(
        spec_->sampling.stop_strings(static_cast<int>(*stop)));
  } else if (reason == v1::Finish::STOP && !output_.empty()) {
    completion->mutable_finish()->set_stop_token_id(output_.back());
  }
  *completion->mutable_receipt() = MakeReceipt();
  final->mutable_usage()->set_prompt_tokens(
      static_cast<int32_t>(spec_->prompt.size()));
  final->mutable_usage()->set_cached_tokens(cached_tokens_);
  final->mutable_usage()->set_output_tokens(
      static_cast<int32_t>(output_.size()));
  sink_->OnEvent(std::move(event));
  sink_->OnEnd(grpc::Status::OK);
}

v1::Receipt Answer::MakeReceipt() const {
  v1::Receipt receipt;
  receipt.set_fingerprint(fingerprint_);
  receipt.set_request_id(spec_->request_id);
  receipt.set_seed(spec_->seed);
  *receipt.mutable_sampling() = spec_->sampling;
  receipt.mutable_sampling()->set_max_tokens(max_tokens_);
  receipt.set_prompt_digest(TokenDigest(spec_->prompt));
  receipt.set_output_digest(TokenDigest(output_));
  receipt.set_model(options_.model_name);
  return receipt;
}

}  // namespace invar::scheduler
