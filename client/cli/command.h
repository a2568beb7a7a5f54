// What a command of `invar` is, and how they all report.
#ifndef INVAR_CLIENT_CLI_COMMAND_H_
#define INVAR_CLIENT_CLI_COMMAND_H_

#include <grpcpp/support/status.h>

#include <istream>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "client/client.h"
#include "common/flags.h"

namespace invar {

// Scripts rely on these.
enum ExitCode : int {
  kExitDone = 0,
  kExitNo = 1,  // The answer is no: score too low, not serving, failed.
  kExitUsage = 2,
  kExitNoServer = 3,
};

// Where a command reads and writes.
struct Terminal {
  std::istream& in;
  std::ostream& out;
  std::ostream& err;
  // Whether a person is at the other end.
  bool in_is_terminal = false;
  bool err_is_terminal = false;
};

// The flags of every command.
struct GlobalFlags {
  std::string address = kDefaultAddress;
  std::string admin_address = kDefaultAdminAddress;
};

// One command: its flags and positional arguments are read into it, then it
// runs, once.
class Command {
 public:
  virtual ~Command() = default;

  virtual std::string Name() const = 0;
  // One line of the list of commands.
  virtual std::string Summary() const = 0;
  // "generate (--prompt TEXT | --chat TEXT | --token-ids IDS) [flags]".
  virtual std::string Usage() const = 0;
  // What it does, in a few lines of 80 columns, each ended.
  virtual std::string Description() const = 0;
  // Command lines with a word on each, indented by two.
  virtual std::string Examples() const = 0;
  virtual void AddFlags(FlagSet& flags) = 0;
  // positional: without the command's own name.
  virtual int Run(const GlobalFlags& globals,
                  const std::vector<std::string>& positional,
                  Terminal& terminal) = 0;
};

std::unique_ptr<Command> MakeGenerateCommand();
std::unique_ptr<Command> MakeChatCommand();
std::unique_ptr<Command> MakeEvalCommand();
std::unique_ptr<Command> MakeVerifyCommand();
std::unique_ptr<Command> MakeSelfTestCommand();
std::unique_ptr<Command> MakeBenchCommand();
std::unique_ptr<Command> MakeCheckCommand();
std::unique_ptr<Command> MakeWorkersCommand();
std::unique_ptr<Command> MakeInspectCommand();

// Runs one command line, without the program's name; returns the exit code.
int RunInvar(const std::vector<std::string>& arguments, Terminal& terminal);

// Each prints one line to terminal.err and returns the exit code.
int ReportUsage(Terminal& terminal, absl::string_view problem);
// INVALID_ARGUMENT and NOT_FOUND are kExitUsage, UNAVAILABLE kExitNoServer with
// how to start one.
int ReportFailure(Terminal& terminal, const absl::Status& status);
// what: "row 17"; may be empty.
int ReportFailure(Terminal& terminal, absl::string_view what,
                  const grpc::Status& status);

// "INVALID_ARGUMENT: MESSAGE (field FIELD; reason REASON; try again in 2s)".
std::string ErrorLine(const grpc::Status& status);
int ExitCodeOf(const grpc::Status& status);

}  // namespace invar

#endif  // INVAR_CLIENT_CLI_COMMAND_H_
