// Sends a load: a closed loop of so many requests in flight, or an open one in
// which they come whether or not the server keeps up.
#ifndef INVAR_CLIENT_BENCH_LOAD_H_
#define INVAR_CLIENT_BENCH_LOAD_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "client/bench/stream_call.h"
#include "client/bench/workload.h"

namespace invar::bench {

struct LoadOptions {
  // Requests in flight, at most; 0 (open loop only): no limit.
  int concurrency = 64;
  // Requests a second on average, as a Poisson process. Absent: closed loop.
  std::optional<double> rate = {};
  uint64_t arrival_seed = 0;
  // At least one of the two: stop beginning requests after so many, or then.
  std::optional<int64_t> requests = {};
  std::optional<absl::Duration> duration = {};
  // Of the sequence's place 0 in the workload; below 0 it is the warm-up's.
  int64_t first_index = 0;
  // For one request.
  absl::Duration timeout = absl::Minutes(10);
  // Keep ids and log-probabilities in the records.
  bool keep_tokens = false;
};

struct LoadProgress {
  int64_t ended = 0;
  int64_t failed = 0;
  int64_t in_flight = 0;
  int64_t output_tokens = 0;
  absl::Duration elapsed;
};

struct LoadResult {
  // In order of their places.
  std::vector<RequestRecord> records;
  Clock::time_point start;
  // When the last ended.
  Clock::time_point end;
  // Of this process, while it lasted.
  absl::Duration cpu_time;
};

// Runs a load to the end of its last request. Latencies count from the time at
// which a request was due: in an open loop that is its arrival, even if it
// could only be sent later, so that a server (or a client) that falls behind
// shows in them. on_progress is called on this thread about once a second.
LoadResult RunLoad(v1::InferenceService::Stub& stub, const Workload& workload,
                   const LoadOptions& options,
                   const std::function<void(const LoadProgress&)>& on_progress);

}  // namespace invar::bench

#endif  // INVAR_CLIENT_BENCH_LOAD_H_
