#include "client/bench/worker_watch.h"

#include <algorithm>
#include <utility>

namespace invar::bench {
namespace {

constexpr absl::Duration kInterval = absl::Milliseconds(200);
constexpr CallOptions kCall{.timeout = absl::Seconds(2)};

}  // namespace

WorkerWatch::WorkerWatch(std::unique_ptr<AdminClient> admin)
    : admin_(std::move(admin)) {
  Sample();
  thread_ = std::thread([this] {
    while (!stop_.WaitForNotificationWithTimeout(kInterval)) Sample();
  });
}

WorkerWatch::~WorkerWatch() {
  if (thread_.joinable()) Stop();
}

std::optional<WorkerActivity> WorkerWatch::Stop() {
  stop_.Notify();
  thread_.join();
  Sample();
  if (!answered_) return std::nullopt;
  activity_.mean_running =
      static_cast<double>(running_sum_) / static_cast<double>(samples_);
  return activity_;
}

void WorkerWatch::Sample() {
  v1::ListWorkersResponse response;
  if (!admin_->ListWorkers(kCall, &response).ok()) {
    answered_ = false;
    return;
  }
  WorkerActivity now;
  for (const v1::WorkerInfo& worker : response.workers()) {
    if (worker.state() != v1::WorkerInfo::READY) continue;
    ++now.workers;
    now.steps += worker.steps();
    now.max_running += worker.running_sequences();
    now.max_kv_blocks_used += worker.kv_blocks_used();
    now.kv_blocks_total += worker.kv_blocks_total();
  }
  if (samples_++ == 0) first_steps_ = now.steps;
  running_sum_ += now.max_running;
  activity_.workers = now.workers;
  activity_.steps = now.steps - first_steps_;
  activity_.max_running = std::max(activity_.max_running, now.max_running);
  activity_.max_kv_blocks_used =
      std::max(activity_.max_kv_blocks_used, now.max_kv_blocks_used);
  activity_.kv_blocks_total = now.kv_blocks_total;
  activity_.max_queued =
      std::max(activity_.max_queued, response.queued_requests());
}

}  // namespace invar::bench
