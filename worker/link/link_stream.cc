#include "worker/link/link_stream.h"

#include <spdlog/spdlog.h>

#include <utility>

namespace invar {
namespace {

constexpr int64_t kQueueMessages = 64;

}  // namespace

using worker::v1::AttachRequest;
using worker::v1::AttachResponse;

void LinkStream::Start(worker::v1::WorkerLinkService::Stub* stub,
                       AttachRequest hello) {
  stub->async()->Attach(&context_, this);
  // Messages are written from other threads than gRPC's; the hold keeps OnDone
  // away until the read has failed and `closed_` stops them.
  AddHold();
  StartRead(&incoming_);
  Send(std::move(hello));
  StartCall();
}

void LinkStream::SetMessageBytes(int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  message_bytes_ = bytes;
}

bool LinkStream::Send(AttachRequest message) {
  const int64_t bytes = message.ByteSizeLong();
  absl::MutexLock lock(&mutex_);
  if (closed_ || finishing_) return false;
  if (bytes > message_bytes_ ||
      queue_bytes_ + bytes > kQueueMessages * message_bytes_) {
    spdlog::error(
        "worker link: {} bytes to write with {} waiting, over the limit of {} "
        "a message and {} in all; the stream is given up",
        bytes, queue_bytes_, message_bytes_, kQueueMessages * message_bytes_);
    finishing_ = true;
    context_.TryCancel();
    return false;
  }
  queue_bytes_ += bytes;
  queue_.push_back(std::move(message));
  WriteNext();
  return true;
}

void LinkStream::SendBeat(worker::v1::Heartbeat beat) {
  absl::MutexLock lock(&mutex_);
  if (closed_ || finishing_) return;
  beat_.emplace();
  *beat_->mutable_heartbeat() = std::move(beat);
  WriteNext();
}

void LinkStream::Finish() {
  absl::MutexLock lock(&mutex_);
  if (closed_ || finishing_) return;
  finishing_ = true;
  WriteNext();
}

std::optional<grpc::Status> LinkStream::WaitDone(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  const auto done = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return status_.has_value();
  };
  mutex_.AwaitWithTimeout(absl::Condition(&done), timeout);
  return status_;
}

void LinkStream::WriteNext() {
  if (writing_ || closed_) return;
  if (beat_.has_value() && hello_written_) {
    outgoing_ = *std::move(beat_);
    beat_.reset();
  } else if (!queue_.empty()) {
    outgoing_ = std::move(queue_.front());
    queue_.pop_front();
    queue_bytes_ -= outgoing_.ByteSizeLong();
    hello_written_ = true;
  } else {
    if (finishing_) {
      writing_ = true;  // The last operation.
      StartWritesDone();
    }
    return;
  }
  writing_ = true;
  StartWrite(&outgoing_);
}

void LinkStream::OnReadDone(bool ok) {
  if (ok) {
    handler_(std::move(incoming_));
    incoming_.Clear();
    StartRead(&incoming_);
    return;
  }
  {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
    queue_.clear();
    queue_bytes_ = 0;
  }
  RemoveHold();
}

void LinkStream::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mutex_);
  writing_ = false;
  if (!ok) {
    // The read fails too, and ends the stream.
    finishing_ = true;
    queue_.clear();
    queue_bytes_ = 0;
    writing_ = true;
    return;
  }
  WriteNext();
}

void LinkStream::OnDone(const grpc::Status& status) {
  handler_ = nullptr;
  // Whoever waits may destroy this once the lock is free.
  absl::MutexLock lock(&mutex_);
  status_ = status;
}

}  // namespace invar
