// What the scheduler counts, for Prometheus.
#ifndef INVAR_SCHEDULER_METRICS_H_
#define INVAR_SCHEDULER_METRICS_H_

#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "invar/v1/admin.pb.h"

namespace invar::scheduler {

// Thread-safe. Names follow vLLM's set behind the prefix invar_; histogram
// edges follow the OpenTelemetry conventions for generative AI.
class Metrics {
 public:
  Metrics();

  // Serves /metrics on HOST:PORT. UNAVAILABLE if it cannot listen there.
  absl::Status Serve(const std::string& address);

  void OnPrompt(int64_t tokens) { prompt_tokens_.Increment(tokens); }
  void OnOutput(int64_t tokens) { output_tokens_.Increment(tokens); }
  void OnFirstToken(absl::Duration since_arrival) {
    first_token_.Observe(absl::ToDoubleSeconds(since_arrival));
  }
  // `reason`: "stop", "length", or an error's code in upper case.
  void OnFinish(const std::string& reason, absl::Duration since_arrival);
  void SetRequests(int64_t running, int64_t waiting);
  // Counts workers by state, pool and the field in which the pool differs from
  // the one that new requests run on. Called by one thread.
  void SetWorkers(const std::vector<v1::WorkerInfo>& workers);

 private:
  using Labels = std::map<std::string, std::string>;

  std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Family<prometheus::Counter>& finished_;
  prometheus::Counter& prompt_tokens_;
  prometheus::Counter& output_tokens_;
  prometheus::Gauge& running_;
  prometheus::Gauge& waiting_;
  prometheus::Family<prometheus::Gauge>& workers_;
  std::map<Labels, prometheus::Gauge*> worker_counts_;
  prometheus::Histogram& first_token_;
  prometheus::Histogram& latency_;
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_METRICS_H_
