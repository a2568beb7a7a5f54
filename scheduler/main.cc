// invar-scheduler: routes requests to workers.

#include <signal.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/config.h"
#include "common/logging.h"
#include "common/version.h"
#include "scheduler/scheduler.h"

ABSL_FLAG(std::string, config, "",
          "The deployment's config: a ServerConfig in textproto. Samples with "
          "every field explained lie in deploy/config.");
ABSL_FLAG(std::string, log_level, "info",
          "What to log: trace, debug, info, warning or error.");

namespace {

constexpr char kUsage[] =
    R"(Routes requests to workers: the public gRPC API, the queue and the link to
the workers. It needs no GPU and holds no model.

  invar-scheduler --config FILE [--log_level LEVEL]

Example:
  invar-scheduler --config deploy/config/embedded.textproto
  invar-worker --scheduler 127.0.0.1:8471 --device cpu
  invar generate --chat "What is 2 + 3?"

Exit codes: 0 stopped by SIGINT or SIGTERM; 1 could not start; 2 wrong usage
or config.)";

// SIGINT and SIGTERM are blocked in every thread and waited for in main.
sigset_t BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

int Fail(int code, absl::string_view message) {
  std::fprintf(stderr, "invar-scheduler: %s\n", std::string(message).c_str());
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(kUsage);
  absl::FlagsUsageConfig usage;
  usage.version_string = [] { return absl::StrCat(invar::kVersion, "\n"); };
  usage.contains_help_flags = [](absl::string_view file) {
    return absl::StrContains(file, "scheduler/main.cc");
  };
  absl::SetFlagsUsageConfig(usage);
  const std::vector<char*> rest = absl::ParseCommandLine(argc, argv);
  if (rest.size() > 1) {
    return Fail(
        2, absl::StrCat("unexpected argument \"", rest[1], "\"; see --help"));
  }
  if (!invar::InitLogging("invar-scheduler", absl::GetFlag(FLAGS_log_level))) {
    return Fail(2, "--log_level must be trace, debug, info, warning or error");
  }
  const std::string path = absl::GetFlag(FLAGS_config);
  if (path.empty()) return Fail(2, "--config FILE is needed; see --help");
  auto config = invar::LoadServerConfig(path);
  if (!config.ok()) return Fail(2, config.status().message());

  const sigset_t signals = BlockStopSignals();
  auto scheduler = invar::scheduler::Scheduler::Start(*std::move(config));
  if (!scheduler.ok()) return Fail(1, scheduler.status().message());
  const auto& listen = (*scheduler)->addresses();
  spdlog::info("listening: api {}, worker link {}, admin {}, metrics {}",
               listen.api(), listen.worker_link(), listen.admin(),
               listen.metrics());
  int signal = 0;
  sigwait(&signals, &signal);
  spdlog::info("stopping: got {}", signal == SIGINT ? "SIGINT" : "SIGTERM");
  return 0;
}
