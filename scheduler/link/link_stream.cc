#include "scheduler/link/link_stream.h"

#include <algorithm>
#include <utility>

#include "common/status.h"

namespace invar::scheduler {
namespace {

using worker::v1::AttachRequest;
using worker::v1::AttachResponse;
using worker::v1::AttemptKey;

bool SameAttempt(const AttemptKey& a, const AttemptKey& b) {
  return a.epoch() == b.epoch() && a.request() == b.request() &&
         a.attempt() == b.attempt();
}

// Whether a queued message submits the attempt, or a part of it.
bool Submits(const AttachResponse& message, const AttemptKey& key) {
  return (message.has_submit() && SameAttempt(message.submit().key(), key)) ||
         (message.has_submit_part() &&
          SameAttempt(message.submit_part().key(), key));
}

}  // namespace

void LinkStream::Start() {
  self_ = shared_from_this();
  StartRead(&incoming_);
}

void LinkStream::Write(AttachResponse message) {
  absl::MutexLock lock(&mutex_);
  if (finished_ || closing_.has_value()) return;
  outgoing_.push_back(std::move(message));
  if (!writing_) WriteNext();
}

void LinkStream::WriteCancel(const AttemptKey& key) {
  AttachResponse message;
  *message.mutable_cancel()->mutable_key() = key;
  absl::MutexLock lock(&mutex_);
  if (finished_ || closing_.has_value()) return;
  // The front is being written, if anything is.
  auto place = outgoing_.begin() + (writing_ ? 1 : 0);
  for (auto at = place; at != outgoing_.end(); ++at) {
    if (Submits(*at, key)) place = at + 1;
  }
  outgoing_.insert(place, std::move(message));
  if (!writing_) WriteNext();
}

void LinkStream::Close(grpc::Status status, bool flush) {
  absl::MutexLock lock(&mutex_);
  if (closing_.has_value()) return;
  closing_ = std::move(status);
  if (!flush && outgoing_.size() > 1) outgoing_.resize(writing_ ? 1 : 0);
  if (!writing_) WriteNext();
}

void LinkStream::WriteNext() {
  if (!outgoing_.empty()) {
    writing_ = true;
    StartWrite(&outgoing_.front());
  } else if (closing_.has_value()) {
    FinishOnce(*closing_);
  }
}

void LinkStream::FinishOnce(const grpc::Status& status) {
  if (finished_) return;
  finished_ = true;
  Finish(status);
}

void LinkStream::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mutex_);
  writing_ = false;
  outgoing_.pop_front();
  if (finished_) return;
  if (!ok) {
    FinishOnce(grpc::Status::CANCELLED);
    return;
  }
  WriteNext();
}

void LinkStream::OnReadDone(bool ok) {
  if (!ok) {
    // The worker hung up, or the stream broke.
    absl::MutexLock lock(&mutex_);
    FinishOnce(closing_.value_or(grpc::Status::OK));
    return;
  }
  OnMessage(incoming_);
  StartRead(&incoming_);
}

void LinkStream::OnMessage(const AttachRequest& message) {
  const auto& post = service_->post_;
  if (!introduced_ && !message.has_hello()) {
    Close(Error(absl::StatusCode::kFailedPrecondition, "NO_HELLO",
                "the first message on the link must be hello"),
          /*flush=*/false);
    return;
  }
  switch (message.message_case()) {
    case AttachRequest::kHello:
      introduced_ = true;
      post(WorkerAttached{link_, message.hello()});
      break;
    case AttachRequest::kLoaded:
      post(WorkerLoaded{link_, message.loaded()});
      break;
    case AttachRequest::kLoadFailed:
      post(WorkerLoadFailed{link_, message.load_failed()});
      break;
    case AttachRequest::kHeartbeat:
      post(WorkerBeat{link_, message.heartbeat()});
      break;
    case AttachRequest::kStepReport:
      post(WorkerReported{link_, message.step_report()});
      break;
    case AttachRequest::kLeaving:
      post(WorkerLeaving{link_});
      break;
    case AttachRequest::MESSAGE_NOT_SET:
      break;  // From a newer worker; the protocol version says if it matters.
  }
}

void LinkStream::OnCancel() {
  absl::MutexLock lock(&mutex_);
  FinishOnce(grpc::Status::CANCELLED);
}

void LinkStream::OnDone() {
  service_->post_(WorkerLost{link_, "its stream ended"});
  service_->Remove(link_);
  self_.reset();
}

}  // namespace invar::scheduler
