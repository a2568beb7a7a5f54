// The worker's metrics, served to Prometheus.
#ifndef INVAR_WORKER_METRICS_H_
#define INVAR_WORKER_METRICS_H_

#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "worker/engine/engine.h"

namespace invar {

// Thread-safe.
class WorkerMetrics {
 public:
  WorkerMetrics();

  // Serves them at http://`address`/metrics. UNAVAILABLE names the flag.
  absl::Status Serve(const std::string& address);

  // After each engine step.
  void ObserveStep(const StepSummary& step, double seconds);

 private:
  const std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Counter& steps_;
  prometheus::Counter& prompt_tokens_;
  prometheus::Counter& generated_tokens_;
  prometheus::Counter& preemptions_;
  prometheus::Gauge& running_;
  prometheus::Gauge& waiting_;
  prometheus::Gauge& kv_blocks_used_;
  prometheus::Gauge& kv_blocks_cached_;
  prometheus::Gauge& kv_blocks_total_;
  prometheus::Histogram& step_seconds_;
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace invar

#endif  // INVAR_WORKER_METRICS_H_
