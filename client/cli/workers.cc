#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/command.h"
#include "client/cli/json.h"
#include "client/cli/table.h"

namespace invar {
namespace {

constexpr CallOptions kCall{.timeout = absl::Seconds(10)};
constexpr size_t kFingerprintDigits = 12;

std::string StateName(const v1::WorkerInfo& worker) {
  return v1::WorkerInfo::State_Name(worker.state());
}

TableRow ToRow(const v1::WorkerInfo& worker) {
  const std::string fingerprint =
      worker.numerics().fingerprint().substr(0, kFingerprintDigits);
  return {worker.worker_id(),
          worker.device(),
          StateName(worker),
          fingerprint.empty() ? "-" : fingerprint,
          absl::StrCat(worker.running_sequences()),
          absl::StrCat(worker.free_sequences()),
          absl::StrCat(worker.kv_blocks_used(), "/", worker.kv_blocks_total()),
          absl::StrCat(worker.steps()),
          absl::StrFormat("%.1fs", worker.heartbeat_age_ms() / 1000.0)};
}

nlohmann::ordered_json ToJson(const v1::WorkerInfo& worker) {
  nlohmann::ordered_json plan = nlohmann::ordered_json::object();
  for (const auto& entry : worker.numerics().plan().entries()) {
    plan[entry.name()] = entry.value();
  }
  return {{"worker_id", worker.worker_id()},
          {"device", worker.device()},
          {"state", StateName(worker)},
          {"reason", worker.reason()},
          {"fingerprint", worker.numerics().fingerprint()},
          {"first_difference", worker.first_difference()},
          {"plan", plan},
          {"weights_digest", worker.numerics().weights_digest()},
          {"kernel_build_id", worker.numerics().kernel_build_id()},
          {"architecture", worker.numerics().architecture()},
          {"tokenizer_digest", worker.numerics().tokenizer_digest()},
          {"epoch", worker.epoch()},
          {"running_sequences", worker.running_sequences()},
          {"free_sequences", worker.free_sequences()},
          {"free_kv_tokens", worker.free_kv_tokens()},
          {"kv_blocks_used", worker.kv_blocks_used()},
          {"kv_blocks_total", worker.kv_blocks_total()},
          {"steps", worker.steps()},
          {"heartbeat_age_ms", worker.heartbeat_age_ms()}};
}

class WorkersCommand : public Command {
 public:
  std::string Name() const override { return "workers"; }
  std::string Summary() const override {
    return "List the workers; drain one or resume it.";
  }
  std::string Usage() const override {
    return "workers [drain ID | resume ID] [flags]";
  }
  std::string Description() const override {
    return "Lists every attached worker: where it stands, the fingerprint of "
           "its numerics,\n"
           "what this scheduler runs there (RUNNING) and may still send "
           "(FREE), "
           "its KV\n"
           "blocks in use, engine steps so far, and the age of its last "
           "heartbeat. Below\n"
           "it, why a worker was refused (in the last minute), and for one of "
           "another pool\n"
           "the first field of its numerics that differs from those that new "
           "requests run\n"
           "on; --json has every field. `drain` stops sending requests to a "
           "worker, whose\n"
           "running ones go on to their end; `resume` starts again. Asks the "
           "admin port.\n";
  }
  std::string Examples() const override {
    return "  invar workers\n"
           "  invar workers --json\n"
           "  invar workers drain worker-1\n";
  }

  void AddFlags(FlagSet& flags) override {
    flags.Section("What is printed");
    flags.AddSwitch("json", "One JSON object instead of the table.", &json_);
  }

  int Run(const GlobalFlags& globals,
          const std::vector<std::string>& positional,
          Terminal& terminal) override {
    const bool lists = positional.empty();
    const bool drains = positional.size() == 2 && positional[0] == "drain";
    const bool resumes = positional.size() == 2 && positional[0] == "resume";
    if (!lists && !drains && !resumes) {
      return ReportUsage(terminal,
                         "workers takes nothing, drain ID or resume ID. See "
                         "invar workers --help");
    }
    auto admin = AdminClient::Connect(globals.admin_address);
    if (!admin.ok()) return ReportNoServer(admin.status(), terminal);
    if (lists) return List(**admin, terminal);
    const std::string& id = positional[1];
    const grpc::Status status =
        drains ? (*admin)->Drain(id, kCall) : (*admin)->Resume(id, kCall);
    if (!status.ok()) return ReportFailure(terminal, "", status);
    terminal.err << id << (drains ? " is draining" : " takes requests again")
                 << "\n";
    return kExitDone;
  }

 private:
  static int ReportNoServer(const absl::Status& status, Terminal& terminal) {
    terminal.err << "invar: " << status.message()
                 << "; this is the admin port, named with --admin-address "
                    "HOST:PORT\n";
    return kExitNoServer;
  }

  int List(AdminClient& admin, Terminal& terminal) const {
    v1::ListWorkersResponse response;
    const grpc::Status status = admin.ListWorkers(kCall, &response);
    if (!status.ok()) return ReportFailure(terminal, "", status);
    if (json_) {
      nlohmann::ordered_json json;
      json["queued_requests"] = response.queued_requests();
      json["workers"] = nlohmann::ordered_json::array();
      for (const v1::WorkerInfo& worker : response.workers()) {
        json["workers"].push_back(ToJson(worker));
      }
      terminal.out << Dump(json) << "\n";
      return kExitDone;
    }
    if (response.workers().empty()) {
      terminal.out << "No worker is attached. Start one with invar-worker "
                      "--scheduler HOST:PORT --device cpu\n";
      return kExitDone;
    }
    std::vector<TableRow> rows = {{"WORKER", "DEVICE", "STATE", "FINGERPRINT",
                                   "RUNNING", "FREE", "KV", "STEPS",
                                   "HEARTBEAT"}};
    for (const v1::WorkerInfo& worker : response.workers()) {
      rows.push_back(ToRow(worker));
    }
    terminal.out << RenderTable(rows);
    for (const v1::WorkerInfo& worker : response.workers()) {
      if (!worker.reason().empty()) {
        terminal.out << worker.worker_id() << ": " << worker.reason() << "\n";
      }
      if (!worker.first_difference().empty()) {
        terminal.out << worker.worker_id() << ": a pool of its own, by "
                     << worker.first_difference() << "\n";
      }
    }
    terminal.out << "queued requests: " << response.queued_requests() << "\n";
    return kExitDone;
  }

  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeWorkersCommand() {
  return std::make_unique<WorkersCommand>();
}

}  // namespace invar
