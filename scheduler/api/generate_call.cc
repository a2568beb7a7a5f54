#include "scheduler/api/generate_call.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "absl/time/clock.h"
#include "scheduler/api/wire.h"

namespace invar::scheduler {
namespace {

// Bytes of receipts that the trailing metadata may hold. gRPC's peers refuse
// metadata beyond 8 KiB, base64 and the status's own details included.
constexpr size_t kReceiptBytesMax = 3072;

// Repeats the receipts where a proxy or a log can see them without reading
// messages; all or, if they are too large, none.
void AddReceipts(const v1::GenerateFinal& final,
                 grpc::CallbackServerContext* context) {
  if (final.ByteSizeLong() > kReceiptBytesMax) return;
  for (const v1::Completion& completion : final.completions()) {
    context->AddTrailingMetadata("invar-receipt-bin",
                                 completion.receipt().SerializeAsString());
  }
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

void StreamedCall::OnBegin(const std::string& fingerprint) {
  absl::MutexLock lock(&mutex_);
  fingerprint_ = fingerprint;
}

void StreamedCall::OnEvent(v1::GenerateResponse event) {
  absl::MutexLock lock(&mutex_);
  if (broken_ || end_ != nullptr) return;
  if (event.has_final()) AddReceipts(event.final(), context_);
  Enqueue(std::move(event));
  if (!writing_) WriteNext();
}

void StreamedCall::Enqueue(v1::GenerateResponse event) {
  const auto bytes = static_cast<int64_t>(event.ByteSizeLong());
  buffered_bytes_ += bytes;
  Pending* last = event.has_delta() ? FindAdjacent(event.delta()) : nullptr;
  if (last != nullptr) {
    Coalesce(event.delta(), last->event.mutable_delta());
    last->bytes += bytes;
  } else {
    events_.push_back({std::move(event), bytes});
  }
  if (writing_ && buffered_bytes_ > buffer_bytes_) {
    Break();  // limits.stream_buffer_bytes: this client will not have it.
  }
}

StreamedCall::Pending* StreamedCall::FindAdjacent(const v1::TokenDelta& delta) {
  // The deltas of several answers take turns, and what other answers say does
  // not come between two deltas of one. So at most n deltas are unwritten.
  const auto unwritten = events_.size() - (writing_ ? 1 : 0);
  auto pending = events_.rbegin();
  for (size_t i = 0; i < unwritten; ++i, ++pending) {
    if (!pending->event.has_delta()) return nullptr;
    const v1::TokenDelta& last = pending->event.delta();
    if (last.index() != delta.index()) continue;
    // Text without tokens was held back to the end; a client that resumes must
    // be able to tell it from the text of the tokens.
    if (last.token_ids().empty() != delta.token_ids().empty()) return nullptr;
    const bool adjacent =
        last.position() + last.token_ids_size() == delta.position();
    return adjacent ? &*pending : nullptr;
  }
  return nullptr;
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
    if (!fingerprint_.empty()) {
      context_->AddInitialMetadata("invar-fingerprint",
                                   std::exchange(fingerprint_, ""));
    }
    writing_ = true;
    write_began_ = absl::Now();
    bytes_ = SerializeResponse(events_.front().event);
    StartWrite(&bytes_);
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

v1::Answer& WholeCall::AnswerAt(int32_t index) {
  while (response_.answers_size() <= index) response_.add_answers();
  return *response_.mutable_answers(index);
}

void WholeCall::OnEvent(v1::GenerateResponse event) {
  switch (event.event_case()) {
    case v1::GenerateResponse::kPromptLogprobs:
      response_.mutable_prompt_logprobs()->MergeFrom(
          event.prompt_logprobs().logprobs());
      break;
    case v1::GenerateResponse::kDelta: {
      v1::Answer& answer = AnswerAt(event.delta().index());
      answer.mutable_text()->append(event.delta().text());
      answer.mutable_token_ids()->MergeFrom(event.delta().token_ids());
      answer.mutable_logprobs()->MergeFrom(event.delta().logprobs());
      answer.mutable_top_logprobs()->MergeFrom(event.delta().top_logprobs());
      break;
    }
    case v1::GenerateResponse::kFinal:
      AddReceipts(event.final(), context_);
      for (const v1::Completion& completion : event.final().completions()) {
        *AnswerAt(completion.index()).mutable_completion() = completion;
      }
      *response_.mutable_usage() = event.final().usage();
      response_.set_request_id(
          event.final().completions(0).receipt().request_id());
      break;
    case v1::GenerateResponse::EVENT_NOT_SET:
      break;
  }
}

void WholeCall::OnEnd(const grpc::Status& status) {
  if (status.ok()) *bytes_ = SerializeResponse(response_);
  Finish(status);
}

// Finish comes from the core, which answers an abandoned request with one: the
// response stays valid until then.
void WholeCall::OnCancel() {
  cancelled_ = true;
  abandon_();
}

void WholeCall::OnDone() { self_.reset(); }

}  // namespace invar::scheduler
