// Flags of one command, declared in one place and read into plain variables.
//
// Every program of Invar reads its command line through this.
//
// Not absl flags: those are global to the binary, so that every command would
// accept, and list in its help, the flags of all the others; they know neither
// absent values nor repeated ones, and exit the process on an error.
#ifndef INVAR_COMMON_FLAGS_H_
#define INVAR_COMMON_FLAGS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace invar {

class FlagSet {
 public:
  // Starts a group in the help; the flags added next belong to it.
  void Section(const std::string& title);

  // A flag with a value. Its syntax is that of the target's type, which is one
  // of: std::string, int32_t, absl::Duration (seconds above 0); std::optional
  // of std::string, int32_t, uint64_t, float, double or std::vector<int32_t>
  // (5,6,7); std::vector<std::string> (each occurrence adds one);
  // std::map<int32_t, float> (5=1.5,7=-100). The target must outlive the set
  // and holds the default; value_name stands for the value in the help.
  template <typename Value>
  void Add(const std::string& name, const std::string& value_name,
           const std::string& help, Value* target);
  // A flag without one, though it may be given: --name=false.
  // Value: bool or std::optional<bool>.
  template <typename Value>
  void AddSwitch(const std::string& name, const std::string& help,
                 Value* target);

  // Reads a flag into its target. NOT_FOUND for one that was not added,
  // INVALID_ARGUMENT for a value that is missing or of another type.
  absl::Status Set(const std::string& name,
                   const std::optional<std::string>& value);
  bool Has(const std::string& name) const;
  // Whether the next argument is the value in "--name value".
  bool TakesValue(const std::string& name) const;
  std::vector<std::string> Names() const;
  // The flags with their helps, wrapped to 80 columns, a blank line and the
  // title before each section.
  std::string Help() const;

 private:
  struct Flag {
    std::string name;
    std::string value_name;  // Empty: takes no value.
    std::string help;
    std::string section;
    // Reads a value; false if it is not of the flag's type.
    std::function<bool(const std::string&)> read;
    std::string syntax;  // "a number", for the error.
  };

  const Flag* Find(const std::string& name) const;

  std::vector<Flag> flags_;
  std::string section_;
};

// A command line, cut but not yet read.
struct CommandLine {
  // Flags in order, without dashes; nothing where no "=value" and no value
  // argument stood.
  std::vector<std::pair<std::string, std::optional<std::string>>> flags;
  std::vector<std::string> positional;
};

// Cuts arguments into flags and the rest. A flag's value is the next argument
// if takes_value(name); after "--" nothing is a flag. "-h" is "--help"; "-"
// alone is positional. INVALID_ARGUMENT for a value that is missing, or
// another flag with one dash.
absl::StatusOr<CommandLine> CutCommandLine(
    const std::vector<std::string>& arguments,
    const std::function<bool(const std::string&)>& takes_value);

// The name nearest to a mistyped one, if one is near enough to be meant.
std::optional<std::string> NearestName(const std::string& name,
                                       const std::vector<std::string>& names);

// "; did you mean DASHES + NAME?" for the nearest of `names`, or only a stop.
std::string DidYouMean(const std::string& name, const std::string& dashes,
                       const std::vector<std::string>& names);

// Reads a cut command line into the set. INVALID_ARGUMENT, one line, for an
// unknown flag or a wrong value; it points to "HELP_COMMAND --help".
absl::Status ReadFlags(const CommandLine& line, const std::string& help_command,
                       FlagSet* flags);

// The whole of it for a program without commands and positional arguments.
absl::Status ParseFlags(const std::string& program,
                        const std::vector<std::string>& arguments,
                        FlagSet* flags);

}  // namespace invar

#endif  // INVAR_COMMON_FLAGS_H_
