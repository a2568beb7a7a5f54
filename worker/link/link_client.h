// Keeps a worker attached to one scheduler, for as long as it lives.
#ifndef INVAR_WORKER_LINK_LINK_CLIENT_H_
#define INVAR_WORKER_LINK_LINK_CLIENT_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "worker/link/attachment.h"
#include "worker/replica.h"

namespace invar {

// Owns one thread: it dials, beats while attached, and dials again when the
// stream is lost, for ever and with a growing pause. It logs a line when the
// link's state changes, not for each try.
class LinkClient {
 public:
  // `replica` must outlive this.
  LinkClient(LinkIdentity identity, Replica* replica);
  // Stops without Leave.
  ~LinkClient();

  // Says that the worker leaves: no more submits, no more dialling.
  void Leave();
  // Hangs up, giving what is queued up to two seconds to be written. Blocks.
  void Stop();

  // Waits until the thread dials no more: after Leave, Stop or a takeover.
  void WaitUntilEnded();

  // Attached, and admitted there.
  bool admitted();
  // The link is down until a step that hangs has ended.
  bool awaits_progress() const { return awaits_progress_; }
  // Another worker attached under the same id, and took over.
  bool superseded() const { return superseded_; }

 private:
  void Run();
  // Waits while the engine's step is stuck: the scheduler would take such a
  // worker for dead again, with the requests that it had sent it. False: do
  // not dial.
  bool AwaitProgress();
  // Dials and beats until the stream ends.
  void AttachOnce();
  void LogEnd(Attachment* attachment, const grpc::Status& status);
  // False: do not dial again.
  bool Pause(absl::Duration duration);

  const LinkIdentity identity_;
  Replica* const replica_;
  const std::unique_ptr<worker::v1::WorkerLinkService::Stub> stub_;

  std::atomic<bool> superseded_{false};
  std::atomic<bool> awaits_progress_{false};
  // Of the thread.
  absl::Duration pause_;
  absl::Duration step_stall_ = absl::InfiniteDuration();
  std::string last_failure_;  // of the last try; empty after a success

  absl::Mutex mutex_;
  std::shared_ptr<Attachment> attachment_ ABSL_GUARDED_BY(mutex_);
  bool leaving_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace invar

#endif  // INVAR_WORKER_LINK_LINK_CLIENT_H_
