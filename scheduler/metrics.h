// What the scheduler counts, for Prometheus.
#ifndef INVAR_SCHEDULER_METRICS_H_
#define INVAR_SCHEDULER_METRICS_H_

#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

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

 private:
  std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Family<prometheus::Counter>& finished_;
  prometheus::Counter& prompt_tokens_;
  prometheus::Counter& output_tokens_;
  prometheus::Gauge& running_;
  prometheus::Gauge& waiting_;
  prometheus::Histogram& first_token_;
  prometheus::Histogram& latency_;
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_METRICS_H_
