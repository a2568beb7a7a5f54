// The two forms of a generation on the wire: streamed, and whole.
#ifndef INVAR_SCHEDULER_API_GENERATE_CALL_H_
#define INVAR_SCHEDULER_API_GENERATE_CALL_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "invar/v1/inference.grpc.pb.h"
#include "scheduler/api/answer.h"

namespace invar::scheduler {

// Tells the core that the client is gone. Called at most once, from any
// thread.
using Abandon = std::function<void()>;

// A streamed generation. Writes one message at a time; what comes meanwhile
// coalesces. Keeps itself alive until gRPC is done with it.
class StreamedCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                           public AnswerSink,
                           public std::enable_shared_from_this<StreamedCall> {
 public:
  StreamedCall(grpc::CallbackServerContext* context, int64_t buffer_bytes)
      : context_(context), buffer_bytes_(buffer_bytes) {}

  // Returns itself, for the handler to return. `abandon` is for OnCancel.
  StreamedCall* Start(Abandon abandon);
  // Cancels the call if its client has left a message unread for longer.
  void CancelIfStalled(absl::Time now, absl::Duration limit);

  void OnBegin(const std::string& fingerprint) override;
  void OnEvent(v1::GenerateResponse event) override;
  void OnEnd(const grpc::Status& status) override;
  bool cancelled() const override { return cancelled_; }

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  void Enqueue(v1::GenerateResponse event)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Cancels the call of a client that does not read.
  void Break() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  struct Pending {
    v1::GenerateResponse event;
    int64_t bytes;
  };
  // The unwritten delta that `delta` goes on; null: none.
  Pending* FindAdjacent(const v1::TokenDelta& delta)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Valid while the call is unfinished.
  grpc::CallbackServerContext* const context_;
  const int64_t buffer_bytes_;
  Abandon abandon_;
  std::atomic<bool> cancelled_ = false;
  absl::Mutex mutex_;
  // The front is being written if writing_.
  std::deque<Pending> events_ ABSL_GUARDED_BY(mutex_);
  int64_t buffered_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  // What is being written.
  grpc::ByteBuffer bytes_ ABSL_GUARDED_BY(mutex_);
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  // For the initial metadata, which goes with the first message; then empty.
  std::string fingerprint_ ABSL_GUARDED_BY(mutex_);
  absl::Time write_began_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  std::unique_ptr<grpc::Status> end_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<StreamedCall> self_;
};

// A whole generation in one message.
class WholeCall final : public grpc::ServerUnaryReactor,
                        public AnswerSink,
                        public std::enable_shared_from_this<WholeCall> {
 public:
  WholeCall(grpc::CallbackServerContext* context, grpc::ByteBuffer* bytes)
      : context_(context), bytes_(bytes) {}

  WholeCall* Start(Abandon abandon);

  void OnEvent(v1::GenerateResponse event) override;
  void OnEnd(const grpc::Status& status) override;
  bool cancelled() const override { return cancelled_; }

  void OnCancel() override;
  void OnDone() override;

 private:
  v1::Answer& AnswerAt(int32_t index);

  // Valid until OnEnd.
  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const bytes_;
  v1::GenerateOnceResponse response_;
  Abandon abandon_;
  std::atomic<bool> cancelled_ = false;
  std::shared_ptr<WholeCall> self_;
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_API_GENERATE_CALL_H_
