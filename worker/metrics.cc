#include "worker/metrics.h"

#include <exception>

#include "absl/strings/str_cat.h"

namespace invar {
namespace {

prometheus::Counter& MakeCounter(prometheus::Registry* registry,
                                 const char* name, const char* help) {
  return prometheus::BuildCounter()
      .Name(name)
      .Help(help)
      .Register(*registry)
      .Add({});
}

prometheus::Gauge& MakeGauge(prometheus::Registry* registry, const char* name,
                             const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(*registry).Add(
      {});
}

}  // namespace

WorkerMetrics::WorkerMetrics()
    : registry_(std::make_shared<prometheus::Registry>()),
      steps_(MakeCounter(registry_.get(), "invar_worker_steps_total",
                         "Engine steps.")),
      prompt_tokens_(MakeCounter(
          registry_.get(), "invar_worker_prompt_tokens_total",
          "Prompt tokens computed, also those of resumed output, and again "
          "those of preempted sequences.")),
      generated_tokens_(MakeCounter(registry_.get(),
                                    "invar_worker_generated_tokens_total",
                                    "Tokens sampled.")),
      preemptions_(MakeCounter(
          registry_.get(), "invar_preemptions_total",
          "Sequences that gave their KV blocks back to an older one.")),
      running_(MakeGauge(registry_.get(), "invar_worker_sequences_running",
                         "Sequences with a place in the batch.")),
      waiting_(MakeGauge(registry_.get(), "invar_worker_sequences_waiting",
                         "Sequences that wait for a place.")),
      kv_blocks_used_(MakeGauge(registry_.get(), "invar_worker_kv_blocks_used",
                                "KV blocks that a sequence refers to.")),
      kv_blocks_cached_(MakeGauge(
          registry_.get(), "invar_worker_kv_blocks_cached",
          "KV blocks that no sequence refers to, kept for their text.")),
      kv_blocks_total_(MakeGauge(registry_.get(),
                                 "invar_worker_kv_blocks_total",
                                 "KV blocks there are.")),
      step_seconds_(prometheus::BuildHistogram()
                        .Name("invar_worker_step_seconds")
                        .Help("Time of an engine step.")
                        .Register(*registry_)
                        .Add({}, prometheus::Histogram::BucketBoundaries{
                                     0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                     0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0})) {}

absl::Status WorkerMetrics::Serve(const std::string& address) {
  try {
    exposer_ = std::make_unique<prometheus::Exposer>(address, 1);
  } catch (const std::exception&) {  // civetweb's way to say that it is taken
    return absl::UnavailableError(absl::StrCat(
        "cannot serve metrics on ", address,
        ", is the port taken? Name another with --metrics HOST:PORT, as each "
        "worker on a machine needs its own, or turn them off with "
        "--metrics \"\""));
  }
  exposer_->RegisterCollectable(registry_);
  return absl::OkStatus();
}

void WorkerMetrics::ObserveStep(const StepSummary& step, double seconds) {
  if (step.computed) {
    steps_.Increment();
    step_seconds_.Observe(seconds);
  }
  prompt_tokens_.Increment(static_cast<double>(step.prompt_tokens));
  generated_tokens_.Increment(static_cast<double>(step.generated_tokens));
  preemptions_.Increment(static_cast<double>(step.preemptions));
  running_.Set(static_cast<double>(step.running));
  waiting_.Set(static_cast<double>(step.waiting));
  kv_blocks_used_.Set(static_cast<double>(step.kv_blocks_used));
  kv_blocks_cached_.Set(static_cast<double>(step.kv_blocks_cached));
  kv_blocks_total_.Set(static_cast<double>(step.kv_blocks_total));
}

}  // namespace invar
