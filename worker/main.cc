// invar-worker: dials its schedulers, loads what they say, and computes.
#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/logging.h"
#include "common/stop_signals.h"
#include "common/version.h"
#include "worker/device.h"
#include "worker/engine/steady_clock.h"
#include "worker/flags.h"
#include "worker/health.h"
#include "worker/link/link_client.h"
#include "worker/metrics.h"
#include "worker/replica.h"

namespace invar {
namespace {

constexpr int kExitCannotServe = 1;
constexpr int kExitUsage = 2;
constexpr absl::Duration kFinishRunning = absl::Seconds(10);
constexpr absl::Duration kTick = absl::Milliseconds(100);

using Links = std::vector<std::unique_ptr<LinkClient>>;

// Lets running sequences end, until a second signal or the time is up.
void FinishRunning(const Links& links, Replica* replica, StopSignals* signals) {
  spdlog::info(
      "leaving: finishing what runs, for up to {} s; another signal "
      "ends it at once",
      absl::ToInt64Seconds(kFinishRunning));
  for (const auto& link : links) link->Leave();
  EngineThread* engine = replica->engine_if_loaded();
  const absl::Time end = SteadyNow() + kFinishRunning;
  while (engine != nullptr && SteadyNow() < end) {
    if (engine->WaitUntilIdle(kTick)) return;
    if (signals->Wait(absl::ZeroDuration())) return;
  }
}

void TellHealth(const Links& links, WorkerHealth* health) {
  bool hangs = false;
  bool admitted = false;
  for (const auto& link : links) {
    hangs |= link->awaits_progress();
    admitted |= link->admitted();
  }
  health->Set(/*alive=*/!hangs, /*ready=*/admitted && !hangs);
}

// Until a signal, or until the worker can serve nobody. The exit code.
int Serve(const Links& links, Replica* replica, WorkerHealth* health,
          StopSignals* signals) {
  while (!signals->Wait(kTick)) {
    TellHealth(links, health);
    if (replica->load_failure().has_value()) {
      spdlog::error("cannot load the model: {}",
                    std::string(replica->load_failure()->message()));
      return kExitCannotServe;
    }
    for (const auto& link : links) {
      if (link->superseded()) return kExitCannotServe;
    }
  }
  health->Set(/*alive=*/true, /*ready=*/false);
  FinishRunning(links, replica, signals);
  return 0;
}

int Run(const WorkerFlags& flags) {
  StopSignals signals;
  const absl::StatusOr<Replica::ModelLoader> load_model =
      LoaderFor(flags.device);
  if (!load_model.ok()) {
    spdlog::error("{}", std::string(load_model.status().message()));
    return kExitCannotServe;
  }
  WorkerMetrics metrics;
  if (!flags.metrics.empty()) {
    if (absl::Status status = metrics.Serve(flags.metrics); !status.ok()) {
      spdlog::error("{}", std::string(status.message()));
      return kExitCannotServe;
    }
  }
  WorkerHealth health;
  if (!flags.health.empty()) {
    if (absl::Status status = health.Serve(flags.health); !status.ok()) {
      spdlog::error("{}", std::string(status.message()));
      return kExitCannotServe;
    }
  }
  Replica::Options options;
  options.threads = flags.threads;
  options.load_model = *load_model;
  options.schedulers = static_cast<int>(flags.schedulers.size());
  options.observer = [&metrics](const StepSummary& step, double seconds) {
    metrics.ObserveStep(step, seconds);
  };
  Replica replica(options);
  Links links;
  for (size_t i = 0; i < flags.schedulers.size(); ++i) {
    links.push_back(std::make_unique<LinkClient>(
        LinkIdentity{flags.schedulers[i], static_cast<int>(i), flags.worker_id,
                     flags.device},
        &replica));
  }
  spdlog::info("worker \"{}\" {} on {}", flags.worker_id, kVersion,
               flags.device);
  const int code = Serve(links, &replica, &health, &signals);
  for (const auto& link : links) link->Stop();
  spdlog::info("stopped");
  return code;
}

}  // namespace
}  // namespace invar

int main(int argc, char** argv) {
  const absl::StatusOr<invar::WorkerFlags> flags =
      invar::ParseWorkerFlags({argv + 1, argv + argc});
  if (!flags.ok()) {
    std::fprintf(stderr, "invar-worker: %s\n",
                 std::string(flags.status().message()).c_str());
    return invar::kExitUsage;
  }
  if (flags->help) {
    std::fputs(invar::WorkerHelp().c_str(), stdout);
    return 0;
  }
  if (flags->version) {
    std::printf("invar-worker %s\n", invar::kVersion);
    return 0;
  }
  if (!invar::InitLogging("worker", flags->log_level)) {
    std::fprintf(stderr,
                 "invar-worker: --log-level is \"%s\"; it must be trace, "
                 "debug, info, warning or error\n",
                 flags->log_level.c_str());
    return invar::kExitUsage;
  }
  return invar::Run(*flags);
}
