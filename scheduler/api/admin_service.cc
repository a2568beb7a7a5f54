#include "scheduler/api/admin_service.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace invar::scheduler {
namespace {

grpc::ServerUnaryReactor* Reply(grpc::CallbackServerContext* context,
                                const grpc::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(status);
  return reactor;
}

}  // namespace

grpc::ServerUnaryReactor* AdminService::ListWorkers(
    grpc::CallbackServerContext* context, const v1::ListWorkersRequest* request,
    v1::ListWorkersResponse* response) {
  loop_.Read([response](const Core& core, absl::Time now) {
    for (v1::WorkerInfo& worker : core.Workers(now)) {
      *response->add_workers() = std::move(worker);
    }
    response->set_queued_requests(static_cast<int32_t>(core.queued()));
  });
  return Reply(context, grpc::Status::OK);
}

grpc::Status AdminService::CheckWorker(const std::string& worker_id) const {
  const auto workers = loop_.Read(
      [](const Core& core, absl::Time now) { return core.Workers(now); });
  if (std::any_of(workers.begin(), workers.end(), [&](const auto& worker) {
        return worker.worker_id() == worker_id;
      })) {
    return grpc::Status::OK;
  }
  return Error(absl::StatusCode::kNotFound, "NO_SUCH_WORKER",
               absl::StrCat("no worker \"", worker_id,
                            "\" is attached; see `invar workers`"))
      .Field("worker_id", "names no attached worker");
}

grpc::ServerUnaryReactor* AdminService::Drain(
    grpc::CallbackServerContext* context, const v1::DrainRequest* request,
    v1::DrainResponse* response) {
  const grpc::Status status = CheckWorker(request->worker_id());
  if (status.ok()) loop_.Post(WorkerDrained{request->worker_id()});
  return Reply(context, status);
}

grpc::ServerUnaryReactor* AdminService::Resume(
    grpc::CallbackServerContext* context, const v1::ResumeRequest* request,
    v1::ResumeResponse* response) {
  const grpc::Status status = CheckWorker(request->worker_id());
  if (status.ok()) loop_.Post(WorkerResumed{request->worker_id()});
  return Reply(context, status);
}

}  // namespace invar::scheduler
