// One attach to one scheduler: the protocol of link.proto, from Hello to the
// end of the stream.
#ifndef INVAR_WORKER_LINK_ATTACHMENT_H_
#define INVAR_WORKER_LINK_ATTACHMENT_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "invar/worker/v1/link.grpc.pb.h"
#include "worker/engine/engine_thread.h"
#include "worker/link/link_stream.h"
#include "worker/link/submit_assembler.h"
#include "worker/replica.h"

namespace invar {

// Who dials whom, the same at every attach.
struct LinkIdentity {
  std::string scheduler;  // HOST:PORT
  int place = 0;          // of the scheduler, in the order of --scheduler
  std::string worker_id;
  std::string device;
};

// Thread-safe. Messages are handled on gRPC's threads, loading ends on the
// replica's, reports come from the engine's; none of them blocks.
class Attachment : public std::enable_shared_from_this<Attachment> {
 public:
  // `replica` must outlive this, and this must be kept until WaitDone has
  // returned a status.
  static std::shared_ptr<Attachment> Start(
      const LinkIdentity& identity, Replica* replica,
      worker::v1::WorkerLinkService::Stub* stub);

  // Shows that the worker lives.
  void Beat();
  absl::Duration beat_interval() const {
    return absl::Milliseconds(heartbeat_ms_.load());
  }

  // How old a step may be before the scheduler counts this worker as dead;
  // infinite before the config comes.
  absl::Duration step_stall() const {
    return configured_ ? absl::Milliseconds(step_stall_ms_.load())
                       : absl::InfiniteDuration();
  }

  // Takes no more submits, and says so.
  void Leave();
  // Hangs up when all is written.
  void Finish() { stream_->Finish(); }
  void Cancel() { stream_->Cancel(); }

  std::optional<grpc::Status> WaitDone(absl::Duration timeout) {
    return stream_->WaitDone(timeout);
  }
  // Ends the lease: drops this attach's requests. Call when done.
  void Close();

  // The scheduler took this worker into a pool.
  bool admitted() const { return admitted_; }
  // The scheduler answered.
  bool configured() const { return configured_; }
  // Why the scheduler or this worker declined; empty: neither has.
  std::string declined();

 private:
  Attachment(const LinkIdentity& identity, Replica* replica)
      : identity_(identity), replica_(replica) {}

  void OnMessage(worker::v1::AttachResponse message);
  void OnConfigure(const worker::v1::Configure& configure);
  void OnLoaded(const absl::Status& status);
  void OnSubmit(std::optional<SubmitAssembler::Ready> ready);
  void Decline(absl::string_view reason);
  void OnCancel(const worker::v1::AttemptKey& key);
  // 0 before Loaded is sent and after Close.
  SessionId session();
  bool IsStale(const worker::v1::AttemptKey& key) const {
    return key.epoch() != epoch_;
  }

  const LinkIdentity identity_;
  Replica* const replica_;
  std::shared_ptr<LinkStream> stream_;

  // Of the thread that reads the stream.
  int64_t epoch_ = 0;
  std::optional<SubmitAssembler> assembler_;

  std::atomic<int64_t> heartbeat_ms_{500};
  std::atomic<int64_t> message_bytes_{0};
  std::atomic<int64_t> step_stall_ms_{0};
  std::atomic<bool> configured_{false};
  std::atomic<bool> admitted_{false};
  std::atomic<bool> leaving_{false};

  absl::Mutex mutex_;
  SessionId session_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::string declined_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace invar

#endif  // INVAR_WORKER_LINK_ATTACHMENT_H_
