#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/command.h"
#include "common/version.h"

namespace invar {
namespace {

constexpr char kExitCodes[] =
    "Exit codes:\n"
    "  0  done\n"
    "  1  the answer is no (score too low, not serving) or the call failed\n"
    "  2  wrong usage or input\n"
    "  3  no server, or none that could answer in time\n";

// A command with its flags, those of every command among them.
struct Entry {
  std::unique_ptr<Command> command;
  FlagSet flags;
};

struct Switches {
  bool help = false;
  bool version = false;
};

void AddGlobalFlags(FlagSet& flags, GlobalFlags& globals, Switches& switches) {
  flags.Section("Flags of every command");
  flags.Add("address", "HOST:PORT,...",
            absl::StrCat("The server, or several of one config: a call that "
                         "one of them loses goes on at another. Default: ",
                         kDefaultAddress, "."),
            &globals.address);
  flags.Add("admin-address", "HOST:PORT",
            absl::StrCat("Its admin port, which workers asks. Default: ",
                         kDefaultAdminAddress, "."),
            &globals.admin_address);
  flags.AddSwitch("help", "This text; after a command, that command's.",
                  &switches.help);
  flags.AddSwitch("version", "The version of this program.", &switches.version);
}

std::vector<Entry> MakeEntries(GlobalFlags& globals, Switches& switches) {
  std::vector<Entry> entries;
  entries.push_back({MakeGenerateCommand(), {}});
  entries.push_back({MakeChatCommand(), {}});
  entries.push_back({MakeEvalCommand(), {}});
  entries.push_back({MakeVerifyCommand(), {}});
  entries.push_back({MakeSelfTestCommand(), {}});
  entries.push_back({MakeBenchCommand(), {}});
  entries.push_back({MakeCheckCommand(), {}});
  entries.push_back({MakeWorkersCommand(), {}});
  entries.push_back({MakeInspectCommand(), {}});
  for (Entry& entry : entries) {
    entry.command->AddFlags(entry.flags);
    AddGlobalFlags(entry.flags, globals, switches);
  }
  return entries;
}

std::string ProgramHelp(const std::vector<Entry>& entries,
                        const FlagSet& global_flags) {
  std::string help =
      "invar talks to an Invar server: the same request gives the same bits, "
      "always.\n\nUsage: invar [flags] COMMAND [flags] ...\n\nCommands:\n";
  for (const Entry& entry : entries) {
    absl::StrAppendFormat(&help, "  %-10s%s\n", entry.command->Name(),
                          entry.command->Summary());
  }
  absl::StrAppend(
      &help, "\n", global_flags.Help(),
      "\nExamples:\n"
      "  invar check                          Is a server ready?\n"
      "  invar chat                           Talk to the model.\n"
      "  invar generate --prompt \"2 + 2 =\"    Go on with a text.\n"
      "  invar eval mgsm --min-score 0.8      Score it; exit 1 below 0.8.\n"
      "  invar verify mgsm.jsonl              Write recorded answers again.\n"
      "\ninvar COMMAND --help tells a command's flags and examples.\n\n",
      kExitCodes);
  return help;
}

std::string CommandHelp(const Entry& entry) {
  return absl::StrCat("Usage: invar ", entry.command->Usage(), "\n\n",
                      entry.command->Description(), "\n", entry.flags.Help(),
                      "\nExamples:\n", entry.command->Examples(), "\n",
                      kExitCodes);
}

int UnknownCommand(const std::string& name, const std::vector<Entry>& entries,
                   Terminal& terminal) {
  std::vector<std::string> names;
  for (const Entry& entry : entries) names.push_back(entry.command->Name());
  return ReportUsage(
      terminal, absl::StrCat("unknown command \"", name, "\"",
                             DidYouMean(name, "", names), " See invar --help"));
}

// Reads the flags of a command line; kExitDone if all are well.
int ReadFlagsOrReport(const CommandLine& line, const std::string& help_command,
                      FlagSet& flags, Terminal& terminal) {
  const absl::Status status = ReadFlags(line, help_command, &flags);
  return status.ok() ? kExitDone : ReportUsage(terminal, status.message());
}

int RunWithoutCommand(const CommandLine& line,
                      const std::vector<Entry>& entries, FlagSet& global_flags,
                      const Switches& switches, Terminal& terminal) {
  const int code = ReadFlagsOrReport(line, "invar", global_flags, terminal);
  if (code != kExitDone) return code;
  if (switches.version) {
    terminal.out << "invar " << kVersion << "\n";
    return kExitDone;
  }
  const std::string help = ProgramHelp(entries, global_flags);
  if (switches.help) {
    terminal.out << help;
    return kExitDone;
  }
  terminal.err << help;
  return ReportUsage(terminal, "no command given");
}

}  // namespace

int RunInvar(const std::vector<std::string>& arguments, Terminal& terminal) {
  GlobalFlags globals;
  Switches switches;
  FlagSet global_flags;
  AddGlobalFlags(global_flags, globals, switches);
  std::vector<Entry> entries = MakeEntries(globals, switches);

  // Flags may stand before their command, so which of them take a value must
  // be known before the command is: a name takes one everywhere or nowhere.
  const auto line = CutCommandLine(arguments, [&](const std::string& name) {
    return std::any_of(entries.begin(), entries.end(), [&](const Entry& entry) {
      return entry.flags.TakesValue(name);
    });
  });
  if (!line.ok()) return ReportUsage(terminal, line.status().message());
  if (line->positional.empty()) {
    return RunWithoutCommand(*line, entries, global_flags, switches, terminal);
  }

  std::string name = line->positional[0];
  std::vector<std::string> positional(line->positional.begin() + 1,
                                      line->positional.end());
  if (name == "help") {
    switches.help = true;
    if (positional.empty()) {
      return RunWithoutCommand(*line, entries, global_flags, switches,
                               terminal);
    }
    name = positional[0];
  }
  const auto entry =
      std::find_if(entries.begin(), entries.end(), [&](const Entry& candidate) {
        return candidate.command->Name() == name;
      });
  if (entry == entries.end()) return UnknownCommand(name, entries, terminal);
  const int code = ReadFlagsOrReport(*line, absl::StrCat("invar ", name),
                                     entry->flags, terminal);
  if (code != kExitDone) return code;
  if (switches.help) {
    terminal.out << CommandHelp(*entry);
    return kExitDone;
  }
  absl::Status valid = CheckAddresses(globals.address);
  if (valid.ok()) valid = CheckAddress(globals.admin_address);
  if (!valid.ok()) return ReportFailure(terminal, valid);
  return entry->command->Run(globals, positional, terminal);
}

}  // namespace invar
