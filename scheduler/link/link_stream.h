// One worker's stream.
#ifndef INVAR_SCHEDULER_LINK_LINK_STREAM_H_
#define INVAR_SCHEDULER_LINK_LINK_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <deque>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "invar/worker/v1/link.grpc.pb.h"
#include "scheduler/core/types.h"
#include "scheduler/link/worker_link_service.h"

namespace invar::scheduler {

// Always has one read outstanding; writes are queued. The queue is bounded by
// the worker's credits: a submit and a cancel for each. Keeps itself alive
// until gRPC is done with it.
class LinkStream final
    : public grpc::ServerBidiReactor<worker::v1::AttachRequest,
                                     worker::v1::AttachResponse>,
      public std::enable_shared_from_this<LinkStream> {
 public:
  LinkStream(WorkerLinkService* service, LinkNumber link)
      : service_(service), link_(link) {}

  void Start();
  void Write(worker::v1::AttachResponse message);
  // Goes ahead of everything queued but its own submit and its parts.
  void WriteCancel(const worker::v1::AttemptKey& key);
  // Ends the stream once what is queued is written, or at once.
  void Close(grpc::Status status, bool flush);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FinishOnce(const grpc::Status& status)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnMessage(const worker::v1::AttachRequest& message);

  WorkerLinkService* const service_;
  const LinkNumber link_;
  worker::v1::AttachRequest incoming_;
  bool introduced_ = false;  // OnReadDone's alone
  absl::Mutex mutex_;
  std::deque<worker::v1::AttachResponse> outgoing_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<grpc::Status> closing_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<LinkStream> self_;
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_LINK_LINK_STREAM_H_
