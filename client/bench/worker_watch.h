// What the workers did meanwhile, as the admin port tells it.
#ifndef INVAR_CLIENT_BENCH_WORKER_WATCH_H_
#define INVAR_CLIENT_BENCH_WORKER_WATCH_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <thread>

#include "absl/synchronization/notification.h"
#include "client/client.h"

namespace invar::bench {

// Sums over the workers that can serve.
struct WorkerActivity {
  int32_t workers = 0;
  // Engine steps between begin and end.
  int64_t steps = 0;
  // Sequences that run, sampled.
  double mean_running = 0;
  int32_t max_running = 0;
  // KV blocks in use, sampled; of those there are.
  int64_t max_kv_blocks_used = 0;
  int64_t kv_blocks_total = 0;
  // Requests that wait for a worker, sampled.
  int32_t max_queued = 0;
};

// Asks from its construction on, on a thread of its own.
class WorkerWatch {
 public:
  explicit WorkerWatch(std::unique_ptr<AdminClient> admin);
  ~WorkerWatch();

  // Call once. Nothing if the port did not answer all the time.
  std::optional<WorkerActivity> Stop();

 private:
  void Sample();

  const std::unique_ptr<AdminClient> admin_;
  absl::Notification stop_;
  // The rest is the thread's, until it is joined.
  WorkerActivity activity_;
  bool answered_ = true;
  int64_t samples_ = 0;
  int64_t running_sum_ = 0;
  int64_t first_steps_ = 0;
  std::thread thread_;
};

}  // namespace invar::bench

#endif  // INVAR_CLIENT_BENCH_WORKER_WATCH_H_
