// The scheduler's end of the worker link: streams in, events out.
#ifndef INVAR_SCHEDULER_LINK_WORKER_LINK_SERVICE_H_
#define INVAR_SCHEDULER_LINK_WORKER_LINK_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "invar/worker/v1/link.grpc.pb.h"
#include "scheduler/core/types.h"

namespace invar::scheduler {

class LinkStream;

// Thread-safe. Every stream has a number; what is sent to a number whose
// stream has ended goes nowhere.
class WorkerLinkService final
    : public worker::v1::WorkerLinkService::CallbackService {
 public:
  using PostEvent = std::function<void(Event)>;

  // `config` is what every worker is sent. `post` must outlive the service.
  WorkerLinkService(worker::v1::WorkerConfig config, PostEvent post);

  grpc::ServerBidiReactor<worker::v1::AttachRequest,
                          worker::v1::AttachResponse>*
  Attach(grpc::CallbackServerContext* context) override;

  void Send(const SendConfigure& action);
  void Send(const SendAdmitted& action);
  void Send(const SendRefused& action);
  void Send(const SendSubmit& action);
  void Send(const SendCancel& action);
  void Send(const SendDrain& action);
  void Send(const CloseLink& action);

  const std::string& config_digest() const { return config_digest_; }

 private:
  friend class LinkStream;
  std::shared_ptr<LinkStream> Find(LinkNumber link);
  void Remove(LinkNumber link);

  const worker::v1::WorkerConfig config_;
  const std::string config_digest_;
  const PostEvent post_;
  absl::Mutex mutex_;
  LinkNumber last_link_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<LinkNumber, std::shared_ptr<LinkStream>> streams_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_LINK_WORKER_LINK_SERVICE_H_
