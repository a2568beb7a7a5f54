#include "scheduler/api/generate_call.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "absl/time/clock.h"

namespace invar::scheduler {
namespace {

// Whether two events can be sent as one: deltas of one answer, adjacent.
bool CanCoalesce(const v1::GenerateResponse& last,
                 const v1::GenerateResponse& next) {
  return last.has_delta() && next.has_delta() &&
         last.delta().index() == next.delta().index() &&
         last.delta().position() + last.delta().token_ids_size() ==
             next.delta().position();
}

void Coalesce(const v1::TokenDelta& next, v1::TokenDelta* last) {
  last->mutable_token_ids()->MergeFrom(next.token_ids());
  last->mutable_text()->append(next.text());
  last->mutable_logprobs()->MergeFrom(next.logprobs());
  last->mutable_top_logprobs()->MergeFrom(next.top_logprobs());
}

}  // namespace

StreamedCall* StreamedCall::Start(Abandon abandon) {
  abandon_ = std::move(abandon);
  self_ = shared_from_this();
  return this;
}

void StreamedCall::OnEvent(v1::GenerateResponse event) {
  absl::MutexLock lock(&mutex_);
  if (broken_ || end_ != nullptr) return;
  Enqueue(std::move(event));
  if (!writing_) WriteNext();
}

void StreamedCall::Enqueue(v1::GenerateResponse event) {
  const auto bytes = static_cast<int64_t>(event.ByteSizeLong());
  buffered_bytes_ += bytes;
  const size_t first_unwritten = writing_ ? 1 : 0;
  if (events_.size() > first_unwritten &&
      CanCoalesce(events_.back().event, event)) {
    Coalesce(event.delta(), events_.back().event.mutable_delta());
    events_.back().bytes += bytes;
  } else {
    events_.push_back({std::move(event), bytes});
  }
  if (writing_ && buffered_bytes_ > buffer_bytes_) {
    Break();  // limits.stream_buffer_bytes: this client will not have it.
  }
}

void StreamedCall::Break() {
  if (broken_) return;
  broken_ = true;
  spdlog::warn("a client of {} left {} bytes unread for {}; cancelled",
               context_->peer(), buffered_bytes_,
               absl::FormatDuration(absl::Now() - write_began_));
  context_->TryCancel();
}

void StreamedCall::WriteNext() {
  if (finished_) return;
  if (broken_ || (events_.empty() && end_ != nullptr)) {
    finished_ = true;
    Finish(broken_ ? grpc::Status::CANCELLED : *end_);
  } else if (!events_.empty()) {
    writing_ = true;
    write_began_ = absl::Now();
    StartWrite(&events_.front().event);
  }
}

void StreamedCall::OnEnd(const grpc::Status& status) {
  absl::MutexLock lock(&mutex_);
  if (end_ != nullptr) return;
  end_ = std::make_unique<grpc::Status>(status);
  if (!writing_) WriteNext();
}

void StreamedCall::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mutex_);
  writing_ = false;
  write_began_ = absl::InfiniteFuture();
  buffered_bytes_ -= events_.front().bytes;
  events_.pop_front();
  if (!ok) broken_ = true;
  WriteNext();
}

void StreamedCall::CancelIfStalled(absl::Time now, absl::Duration limit) {
  absl::MutexLock lock(&mutex_);
  if (now - write_began_ > limit) Break();
}

void StreamedCall::OnCancel() {
  cancelled_ = true;
  abandon_();
  // The answer's own end, if the core knew of it, finds a finished call.
  OnEnd(grpc::Status::CANCELLED);
}

void StreamedCall::OnDone() { self_.reset(); }

WholeCall* WholeCall::Start(Abandon abandon) {
  abandon_ = std::move(abandon);
  self_ = shared_from_this();
  return this;
}

void WholeCall::OnEvent(v1::GenerateResponse event) {
  if (response_->answers().empty()) response_->add_answers();
  auto* answer = response_->mutable_answers(0);
  switch (event.event_case()) {
    case v1::GenerateResponse::kPromptLogprobs:
      response_->mutable_prompt_logprobs()->MergeFrom(
          event.prompt_logprobs().logprobs());
      break;
    case v1::GenerateResponse::kDelta:
      answer->mutable_text()->append(event.delta().text());
      answer->mutable_token_ids()->MergeFrom(event.delta().token_ids());
      answer->mutable_logprobs()->MergeFrom(event.delta().logprobs());
      answer->mutable_top_logprobs()->MergeFrom(event.delta().top_logprobs());
      break;
    case v1::GenerateResponse::kFinal:
      *answer->mutable_completion() = event.final().completions(0);
      *response_->mutable_usage() = event.final().usage();
      response_->set_request_id(
          event.final().completions(0).receipt().request_id());
      break;
    case v1::GenerateResponse::EVENT_NOT_SET:
      break;
  }
}

void WholeCall::OnEnd(const grpc::Status& status) { Finish(status); }

// Finish comes from the core, which answers an abandoned request with one: the
// response stays valid until then.
void WholeCall::OnCancel() {
  cancelled_ = true;
  abandon_();
}

void WholeCall::OnDone() { self_.reset(); }

}  // namespace invar::scheduler
