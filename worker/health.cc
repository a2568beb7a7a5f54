#include "worker/health.h"

#include <grpcpp/grpcpp.h>

#include <atomic>

#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "invar/worker/v1/link.grpc.pb.h"

namespace invar {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

// Not gRPC's own: a server of nothing else will not start.
class WorkerHealth::Service final
    : public grpc::health::v1::Health::CallbackService {
 public:
  std::atomic<bool> alive{true};
  std::atomic<bool> ready{false};

 private:
  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const HealthCheckRequest* request,
                                  HealthCheckResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    const bool asks_ready = request->service() ==
                            worker::v1::WorkerLinkService::service_full_name();
    if (!asks_ready && !request->service().empty()) {
      reactor->Finish({grpc::StatusCode::NOT_FOUND,
                       absl::StrCat("a worker has no service \"",
                                    request->service(), "\"")});
      return reactor;
    }
    const bool serves = asks_ready ? ready : alive;
    response->set_status(serves ? HealthCheckResponse::SERVING
                                : HealthCheckResponse::NOT_SERVING);
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

WorkerHealth::WorkerHealth() : service_(std::make_unique<Service>()) {}

WorkerHealth::~WorkerHealth() {
  if (server_ != nullptr) server_->Shutdown();
}

absl::Status WorkerHealth::Serve(const std::string& address) {
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  // Without this, two workers share a port in silence.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.RegisterService(service_.get());
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat(
        "cannot answer health checks on ", address,
        ", is the port taken? Name another with --health HOST:PORT, as each "
        "worker on a machine needs its own, or leave the flag away"));
  }
  return absl::OkStatus();
}

void WorkerHealth::Set(bool alive, bool ready) {
  service_->alive = alive;
  service_->ready = ready;
}

}  // namespace invar
