// The worker's health, for probes: gRPC's standard service on a port of its
// own, the only one on which a worker answers calls.
#ifndef INVAR_WORKER_HEALTH_H_
#define INVAR_WORKER_HEALTH_H_

#include <grpcpp/server.h>

#include <memory>
#include <string>

#include "absl/status/status.h"

namespace invar {

// Use from one thread.
class WorkerHealth {
 public:
  WorkerHealth();
  ~WorkerHealth();

  // Answers on HOST:PORT from now on, as alive and not ready. UNAVAILABLE names
  // the flag.
  absl::Status Serve(const std::string& address);

  // alive (the empty service): no step hangs. ready (the name of
  // WorkerLinkService): a scheduler has admitted this worker.
  void Set(bool alive, bool ready);

 private:
  class Service;

  const std::unique_ptr<Service> service_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace invar

#endif  // INVAR_WORKER_HEALTH_H_
