// invar-scheduler: routes requests to workers.
#include <spdlog/spdlog.h>

#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/config.h"
#include "common/flags.h"
#include "common/logging.h"
#include "common/stop_signals.h"
#include "common/version.h"
#include "scheduler/scheduler.h"

namespace invar {
namespace {

constexpr int kExitCannotServe = 1;
constexpr int kExitUsage = 2;

constexpr char kHelp[] =
    R"(invar-scheduler routes requests to workers: the public gRPC API, the queue and
the link to the workers. It needs no GPU and holds no model.

Usage: invar-scheduler --config FILE [flags]

)";

constexpr char kExamples[] = R"(
Example, each in a terminal of its own:
  invar-scheduler --config deploy/config/embedded.textproto
  invar-worker --scheduler 127.0.0.1:8471 --device cpu
  invar chat

Exit codes:
  0  stopped by SIGINT or SIGTERM
  1  could not start: a port in use, a tokenizer that cannot be read
  2  wrong usage or config
)";

struct Options {
  std::string config;
  std::string log_level = "info";
  bool help = false;
  bool version = false;
};

int Fail(int code, absl::string_view message) {
  std::fprintf(stderr, "invar-scheduler: %s\n", std::string(message).c_str());
  return code;
}

int Serve(const Options& options) {
  auto config = LoadServerConfig(options.config);
  if (!config.ok()) return Fail(kExitUsage, config.status().message());
  StopSignals signals;
  auto scheduler = scheduler::Scheduler::Start(*std::move(config));
  if (!scheduler.ok()) {
    return Fail(kExitCannotServe, scheduler.status().message());
  }
  const auto& listen = (*scheduler)->addresses();
  spdlog::info("listening: api {}, worker link {}, admin {}, metrics {}",
               listen.api(), listen.worker_link(), listen.admin(),
               listen.metrics());
  while (!signals.Wait(absl::Hours(1))) {
  }
  spdlog::info("stopping");
  return 0;
}

int Run(const std::vector<std::string>& arguments) {
  Options options;
  FlagSet flags;
  flags.Section("Flags");
  flags.Add("config", "FILE",
            "The deployment's config, a ServerConfig in textproto. Samples: "
            "deploy/config. Every field: proto/invar/v1/config.proto.",
            &options.config);
  flags.Add("log-level", "LEVEL",
            "trace, debug, info, warning or error. Default: info.",
            &options.log_level);
  flags.AddSwitch("help", "This text.", &options.help);
  flags.AddSwitch("version", "The version of this program.", &options.version);
  if (absl::Status status = ParseFlags("invar-scheduler", arguments, &flags);
      !status.ok()) {
    return Fail(kExitUsage, status.message());
  }
  if (options.help) {
    std::fputs(absl::StrCat(kHelp, flags.Help(), kExamples).c_str(), stdout);
    return 0;
  }
  if (options.version) {
    std::printf("invar-scheduler %s\n", kVersion);
    return 0;
  }
  if (!InitLogging("scheduler", options.log_level)) {
    return Fail(kExitUsage,
                absl::StrCat("--log-level is \"", options.log_level,
                             "\"; it must be trace, debug, info, warning or "
                             "error"));
  }
  if (options.config.empty()) {
    return Fail(kExitUsage,
                "--config FILE is needed. See invar-scheduler --help");
  }
  return Serve(options);
}

}  // namespace
}  // namespace invar

int main(int argc, char** argv) { return invar::Run({argv + 1, argv + argc}); }
