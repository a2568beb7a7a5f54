// Many requests, a bounded number of them in flight, none lost to a full queue
// or a worker that is away for a moment.
#ifndef INVAR_CLIENT_REQUEST_POOL_H_
#define INVAR_CLIENT_REQUEST_POOL_H_

#include <grpcpp/support/status.h>

#include <cstddef>
#include <functional>
#include <vector>

#include "absl/time/time.h"
#include "client/client.h"

namespace invar {

struct PoolOptions {
  // Requests in flight or waiting for their retry, at most.
  int concurrency = 64;
  CallOptions call{.timeout = absl::Hours(1)};
  // How long a request may go on being refused while no other succeeds: by a
  // full queue, and by a server or worker that is away.
  absl::Duration queue_patience = absl::Minutes(10);
  absl::Duration outage_patience = absl::Seconds(30);
  // Without RetryInfo: the first pause, doubled each time up to the last.
  absl::Duration first_pause = absl::Milliseconds(100);
  absl::Duration last_pause = absl::Seconds(5);
  // Called on the pool's thread with each refusal that is tried again.
  std::function<void(const grpc::Status&)> on_retry = {};
  // If set, a failure does not end the run: it is called with each, by the
  // request's index, on the pool's thread.
  std::function<void(size_t, const grpc::Status&)> on_failure = {};
};

// How RunRequests ended. If status is not OK, `index` is the request that
// failed, the first to do so, and `attempts` the times it was sent.
struct PoolResult {
  grpc::Status status;
  size_t index = 0;
  int attempts = 0;
  // Attempts, over all requests, that were refused and tried again.
  int64_t retries = 0;
};

// Sends every request and calls on_answer(index, response) for each, on this
// thread, in the order in which they end. RESOURCE_EXHAUSTED and UNAVAILABLE
// are tried again, after RetryInfo's delay where there is one; to send a
// request twice is safe, because equal requests have equal answers. Any other
// failure cancels what is in flight and ends the run, unless on_failure takes
// it.
PoolResult RunRequests(
    Client& client, const std::vector<v1::GenerateRequest>& requests,
    const PoolOptions& options,
    const std::function<void(size_t, const v1::GenerateOnceResponse&)>&
        on_answer);

}  // namespace invar

#endif  // INVAR_CLIENT_REQUEST_POOL_H_
