// The gRPC end of one attach: a read that is always outstanding and a bounded
// queue of writes. It knows nothing of what the messages mean.
#ifndef INVAR_WORKER_LINK_LINK_STREAM_H_
#define INVAR_WORKER_LINK_LINK_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "invar/worker/v1/link.grpc.pb.h"

namespace invar {

// Thread-safe; no call blocks but WaitDone. Once started, it must be kept until
// WaitDone has returned a status: gRPC uses it until then. Nor may gRPC's own
// threads be left to destroy it, as it may hold the last reference to the
// channel, whose destructor joins them.
class LinkStream : public grpc::ClientBidiReactor<worker::v1::AttachRequest,
                                                  worker::v1::AttachResponse> {
 public:
  // Called on gRPC's threads, one message at a time; must not block.
  using MessageHandler =
      std::function<void(worker::v1::AttachResponse message)>;

  // The handler is let go when the stream is done.
  explicit LinkStream(MessageHandler handler) : handler_(std::move(handler)) {}

  // Opens the stream and sends `hello` on it. Once, before anything else.
  void Start(worker::v1::WorkerLinkService::Stub* stub,
             worker::v1::AttachRequest hello);

  // The bound of a message (limits.link_message_bytes); the queue is bounded
  // to 64 times that. What goes beyond either ends the stream.
  void SetMessageBytes(int64_t bytes);

  // Queues a message; false once the stream is closing.
  bool Send(worker::v1::AttachRequest message);
  // Sends a heartbeat ahead of the queue, in place of one not yet written.
  void SendBeat(worker::v1::Heartbeat beat);
  // Hangs up when the queue is written.
  void Finish();
  // Ends the stream at once.
  void Cancel() { context_.TryCancel(); }

  // The stream's status, once it is done.
  std::optional<grpc::Status> WaitDone(absl::Duration timeout);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  // Starts the next write, or the half-close, if none is under way.
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  grpc::ClientContext context_;
  MessageHandler handler_;
  worker::v1::AttachResponse incoming_;  // of the outstanding read

  absl::Mutex mutex_;
  std::deque<worker::v1::AttachRequest> queue_ ABSL_GUARDED_BY(mutex_);
  std::optional<worker::v1::AttachRequest> beat_ ABSL_GUARDED_BY(mutex_);
  worker::v1::AttachRequest outgoing_;  // of the outstanding write
  int64_t queue_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t message_bytes_ ABSL_GUARDED_BY(mutex_) = int64_t{1} << 20;
  bool hello_written_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;  // no operation may start
  std::optional<grpc::Status> status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace invar

#endif  // INVAR_WORKER_LINK_LINK_STREAM_H_
