#include <algorithm>

#include "absl/time/clock.h"
#include "client/cli/command.h"

namespace invar {
namespace {

using ServingStatus = grpc::health::v1::HealthCheckResponse::ServingStatus;

// What a worker calls its readiness: worker/health.h.
constexpr char kWorkerServiceName[] = "invar.worker.v1.WorkerLinkService";
constexpr absl::Duration kBetweenTries = absl::Milliseconds(200);

class CheckCommand : public Command {
 public:
  std::string Name() const override { return "check"; }
  std::string Summary() const override {
    return "Is a server there, and ready? For scripts and containers.";
  }
  std::string Usage() const override { return "check [flags]"; }
  std::string Description() const override {
    return "Asks for the health of the server (alive) and of "
           "invar.v1.InferenceService\n(ready: a worker is admitted and makes "
           "progress), and prints both. Exits 0 if\nboth serve, 1 if not, 3 "
           "without a server. With --worker it asks a worker's own\nport "
           "(invar-worker --health), where ready is: a scheduler has admitted "
           "it.\n";
  }
  std::string Examples() const override {
    return "  invar check\n"
           "  invar check --wait 60 && invar eval mgsm\n"
           "  invar check --address scheduler.example:8470\n";
  }

  void AddFlags(FlagSet& flags) override {
    flags.Section("How to check");
    flags.Add("wait", "SECONDS",
              "Keep asking until both serve, for so long. Default: ask once.",
              &wait_seconds_);
    flags.AddSwitch("worker", "The address is a worker's health port.",
                    &worker_);
    flags.AddSwitch("quiet", "Print nothing to standard output.", &quiet_);
  }

  int Run(const GlobalFlags& globals,
          const std::vector<std::string>& positional,
          Terminal& terminal) override {
    if (!positional.empty()) {
      return ReportUsage(terminal, "check takes no arguments");
    }
    if (!(wait_seconds_.value_or(0) >= 0)) {
      return ReportUsage(terminal, "--wait must be a number of seconds");
    }
    const absl::Time deadline =
        absl::Now() + absl::Seconds(wait_seconds_.value_or(0));
    while (true) {
      const Health health = Ask(globals.address, deadline);
      if (health.code == kExitDone || absl::Now() + kBetweenTries > deadline) {
        return Report(health, terminal);
      }
      absl::SleepFor(kBetweenTries);
    }
  }

 private:
  struct Health {
    int code = kExitNoServer;
    absl::Status connected;
    grpc::Status answered;
    ServingStatus alive = grpc::health::v1::HealthCheckResponse::UNKNOWN;
    ServingStatus ready = grpc::health::v1::HealthCheckResponse::UNKNOWN;
  };

  std::string ReadinessName() const {
    return worker_ ? kWorkerServiceName : kInferenceServiceName;
  }

  Health Ask(const std::string& address, absl::Time deadline) const {
    Health health;
    auto client = Client::Connect(address);
    health.connected = client.status();
    if (!client.ok()) return health;
    const CallOptions options{.timeout = std::clamp(deadline - absl::Now(),
                                                    absl::Seconds(5),
                                                    absl::Seconds(30))};
    health.answered = (*client)->CheckHealth("", options, &health.alive);
    if (health.answered.ok()) {
      health.answered =
          (*client)->CheckHealth(ReadinessName(), options, &health.ready);
    }
    if (!health.answered.ok()) {
      health.code = ExitCodeOf(health.answered);
    } else {
      const auto serving = grpc::health::v1::HealthCheckResponse::SERVING;
      health.code = health.alive == serving && health.ready == serving
                        ? kExitDone
                        : kExitNo;
    }
    return health;
  }

  int Report(const Health& health, Terminal& terminal) const {
    if (!health.connected.ok()) {
      return ReportFailure(terminal, health.connected);
    }
    if (!health.answered.ok()) {
      return ReportFailure(terminal, "health", health.answered);
    }
    if (!quiet_) {
      using grpc::health::v1::HealthCheckResponse;
      terminal.out << "server: "
                   << HealthCheckResponse::ServingStatus_Name(health.alive)
                   << "\n"
                   << ReadinessName() << ": "
                   << HealthCheckResponse::ServingStatus_Name(health.ready)
                   << "\n";
    }
    return health.code;
  }

  std::optional<double> wait_seconds_;
  bool worker_ = false;
  bool quiet_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeCheckCommand() {
  return std::make_unique<CheckCommand>();
}

}  // namespace invar
