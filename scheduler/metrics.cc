#include "scheduler/metrics.h"

#include <exception>

#include "absl/strings/str_cat.h"

namespace invar::scheduler {
namespace {

using prometheus::Histogram;

Histogram::BucketBoundaries FirstTokenEdges() {
  return {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,
          0.25,  0.5,   0.75, 1,    2.5,  5,    7.5,  10};
}

Histogram::BucketBoundaries LatencyEdges() {
  return {0.01, 0.02, 0.04, 0.08,  0.16,  0.32,  0.64,
          1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92};
}

}  // namespace

Metrics::Metrics()
    : registry_(std::make_shared<prometheus::Registry>()),
      finished_(prometheus::BuildCounter()
                    .Name("invar_request_finished_total")
                    .Help("Requests that ended, by reason")
                    .Register(*registry_)),
      prompt_tokens_(prometheus::BuildCounter()
                         .Name("invar_prompt_tokens_total")
                         .Help("Prompt tokens of accepted requests")
                         .Register(*registry_)
                         .Add({})),
      output_tokens_(prometheus::BuildCounter()
                         .Name("invar_generation_tokens_total")
                         .Help("Tokens written")
                         .Register(*registry_)
                         .Add({})),
      running_(prometheus::BuildGauge()
                   .Name("invar_num_requests_running")
                   .Help("Requests that a worker runs")
                   .Register(*registry_)
                   .Add({})),
      waiting_(prometheus::BuildGauge()
                   .Name("invar_num_requests_waiting")
                   .Help("Requests that wait for a worker")
                   .Register(*registry_)
                   .Add({})),
      workers_(prometheus::BuildGauge()
                   .Name("invar_workers")
                   .Help("Workers by state, fingerprint and the first field in "
                         "which that differs from the pool of new requests")
                   .Register(*registry_)),
      first_token_(prometheus::BuildHistogram()
                       .Name("invar_time_to_first_token_seconds")
                       .Help("From arrival to the first token")
                       .Register(*registry_)
                       .Add({}, FirstTokenEdges())),
      latency_(prometheus::BuildHistogram()
                   .Name("invar_e2e_request_latency_seconds")
                   .Help("From arrival to the end")
                   .Register(*registry_)
                   .Add({}, LatencyEdges())) {}

absl::Status Metrics::Serve(const std::string& address) {
  try {
    exposer_ = std::make_unique<prometheus::Exposer>(address);
    exposer_->RegisterCollectable(registry_);
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ", address, " for metrics (", error.what(),
        "); is the port in use? Change listen.metrics in the config"));
  }
  return absl::OkStatus();
}

void Metrics::OnFinish(const std::string& reason,
                       absl::Duration since_arrival) {
  finished_.Add({{"finished_reason", reason}}).Increment();
  latency_.Observe(absl::ToDoubleSeconds(since_arrival));
}

void Metrics::SetRequests(int64_t running, int64_t waiting) {
  running_.Set(static_cast<double>(running));
  waiting_.Set(static_cast<double>(waiting));
}

void Metrics::SetWorkers(const std::vector<v1::WorkerInfo>& workers) {
  std::map<Labels, int> counts;
  for (const v1::WorkerInfo& worker : workers) {
    // The field alone: its values are for people (invar workers).
    const std::string& difference = worker.first_difference();
    ++counts[{{"state", v1::WorkerInfo::State_Name(worker.state())},
              {"fingerprint", worker.numerics().fingerprint()},
              {"differs_in", difference.substr(0, difference.find(':'))}}];
  }
  for (const auto& [labels, count] : counts) {
    prometheus::Gauge*& gauge = worker_counts_[labels];
    if (gauge == nullptr) gauge = &workers_.Add(labels);
    gauge->Set(count);
  }
  // A pool that is gone must not stay in the metrics for ever.
  std::erase_if(worker_counts_, [&](const auto& entry) {
    if (counts.contains(entry.first)) return false;
    workers_.Remove(entry.second);
    return true;
  });
}

}  // namespace invar::scheduler
