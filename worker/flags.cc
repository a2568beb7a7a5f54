#include "worker/flags.h"

#include <unistd.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/flags.h"

namespace invar {
namespace {

constexpr char kMoreHelp[] = ". See invar-worker --help";

absl::Status Wrong(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(what, kMoreHelp));
}

// The number after the last colon; false if there is none.
bool ParsePort(absl::string_view address, int* port) {
  const size_t colon = address.rfind(':');
  return colon != absl::string_view::npos && colon > 0 &&
         absl::SimpleAtoi(address.substr(colon + 1), port) && *port >= 0 &&
         *port <= 65535;
}

absl::Status CheckDevice(const std::string& device) {
  absl::string_view number = device;
  int index = 0;
  if (device == "cpu") return absl::OkStatus();
  if (absl::ConsumePrefix(&number, "cuda:") &&
      absl::SimpleAtoi(number, &index) && index >= 0) {
    return absl::OkStatus();
  }
  return Wrong(
      absl::StrCat("--device is \"", device, "\"; it must be cpu or cuda:N"));
}

// Two workers of one machine differ in their metrics port, so that the default
// names differ too, and stay the same over restarts.
std::string DefaultWorkerId(const WorkerFlags& flags) {
  char host[256] = "localhost";
  gethostname(host, sizeof(host) - 1);
  int port = 0;
  if (!ParsePort(flags.metrics, &port) || port == 0) {
    return absl::StrCat(host, "/", flags.device);
  }
  return absl::StrCat(host, "/", flags.device, "/", port);
}

absl::Status Resolve(WorkerFlags* flags) {
  int port = 0;
  if (flags->schedulers.empty()) {
    return Wrong(
        "--scheduler HOST:PORT is missing: a worker dials the "
        "schedulers that it is told of");
  }
  for (const std::string& scheduler : flags->schedulers) {
    if (!ParsePort(scheduler, &port) || port == 0) {
      return Wrong(absl::StrCat("--scheduler is \"", scheduler,
                                "\"; it must be HOST:PORT"));
    }
  }
  if (!flags->metrics.empty() && !ParsePort(flags->metrics, &port)) {
    return Wrong(absl::StrCat("--metrics is \"", flags->metrics,
                              "\"; it must be HOST:PORT, or empty for none"));
  }
  if (!flags->health.empty() && !ParsePort(flags->health, &port)) {
    return Wrong(absl::StrCat("--health is \"", flags->health,
                              "\"; it must be HOST:PORT, or empty for none"));
  }
  if (absl::Status status = CheckDevice(flags->device); !status.ok()) {
    return status;
  }
  if (flags->worker_id.empty()) flags->worker_id = DefaultWorkerId(*flags);
  return absl::OkStatus();
}

// Declares every flag. `schedulers` takes each occurrence as it is written.
FlagSet MakeFlagSet(WorkerFlags* flags, std::vector<std::string>* schedulers) {
  FlagSet set;
  set.Section("Flags");
  set.Add("scheduler", "HOST:PORT",
          "The worker link of a scheduler (listen.worker_link in its config, "
          "127.0.0.1:8471 by default). Required; may be repeated, or list "
          "several with commas. Schedulers share the worker evenly.",
          schedulers);
  set.Add("device", "DEVICE", "cpu, or cuda:N. Default: cpu.", &flags->device);
  set.Add("worker-id", "NAME",
          "Names this worker to the schedulers. Must be unique and stay the "
          "same over restarts. Default: host name/device/metrics port.",
          &flags->worker_id);
  set.Add("metrics", "HOST:PORT",
          "Serves Prometheus metrics at /metrics; empty for none. A second "
          "worker on one machine needs another port. Default: 127.0.0.1:9471.",
          &flags->metrics);
  set.Add("health", "HOST:PORT",
          "Answers gRPC health checks: the empty service is alive, "
          "invar.worker.v1.WorkerLinkService is ready once a scheduler has "
          "admitted this worker (invar check --worker asks both). Default: "
          "none.",
          &flags->health);
  set.Add("threads", "N",
          "Threads that compute; 0 is one per core. Default: 0.",
          &flags->threads);
  set.Add("log-level", "LEVEL",
          "trace, debug, info, warning or error. Default: info.",
          &flags->log_level);
  set.AddSwitch("help", "This text.", &flags->help);
  set.AddSwitch("version", "The version of this program.", &flags->version);
  return set;
}

}  // namespace

absl::StatusOr<WorkerFlags> ParseWorkerFlags(
    const std::vector<std::string>& arguments) {
  WorkerFlags flags;
  std::vector<std::string> schedulers;
  FlagSet set = MakeFlagSet(&flags, &schedulers);
  if (absl::Status status = ParseFlags("invar-worker", arguments, &set);
      !status.ok()) {
    return status;
  }
  if (flags.help || flags.version) return flags;
  for (const std::string& list : schedulers) {
    for (absl::string_view one : absl::StrSplit(list, ',', absl::SkipEmpty())) {
      flags.schedulers.emplace_back(one);
    }
  }
  if (flags.threads < 0 || flags.threads > 1024) {
    return Wrong(absl::StrCat("--threads is ", flags.threads,
                              "; it must lie in [0, 1024]"));
  }
  if (absl::Status status = Resolve(&flags); !status.ok()) return status;
  return flags;
}

std::string WorkerHelp() {
  WorkerFlags flags;
  std::vector<std::string> schedulers;
  return absl::StrCat(
      R"(invar-worker runs one replica of the model for one or more schedulers.

Usage: invar-worker --scheduler HOST:PORT [flags]

The worker dials the schedulers' worker link and is sent its configuration, the
checkpoint's path included; that path must exist on this machine too. It takes
no requests of its own. Schedulers may start later: it keeps dialling.

)",
      MakeFlagSet(&flags, &schedulers).Help(),
      R"(
SIGTERM or SIGINT: takes no more work, finishes what runs for up to 10 seconds
and exits 0; a second one exits at once.

Example:
  invar-scheduler --config deploy/config/embedded.textproto &
  invar-worker --scheduler 127.0.0.1:8471 --device cpu

Exit codes:
  0  told to stop
  1  cannot serve; the log says why
  2  wrong usage
)");
}

}  // namespace invar
