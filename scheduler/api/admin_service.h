// AdminService: looks at workers and drains them.
#ifndef INVAR_SCHEDULER_API_ADMIN_SERVICE_H_
#define INVAR_SCHEDULER_API_ADMIN_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <string>

#include "invar/v1/admin.grpc.pb.h"
#include "scheduler/core_loop.h"

namespace invar::scheduler {

// Thread-safe. `loop` must outlive it.
class AdminService final : public v1::AdminService::CallbackService {
 public:
  explicit AdminService(CoreLoop* loop) : loop_(*loop) {}

  grpc::ServerUnaryReactor* ListWorkers(
      grpc::CallbackServerContext* context,
      const v1::ListWorkersRequest* request,
      v1::ListWorkersResponse* response) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;
  grpc::ServerUnaryReactor* Resume(grpc::CallbackServerContext* context,
                                   const v1::ResumeRequest* request,
                                   v1::ResumeResponse* response) override;

 private:
  // NOT_FOUND names worker_id.
  grpc::Status CheckWorker(const std::string& worker_id) const;

  CoreLoop& loop_;
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_API_ADMIN_SERVICE_H_
