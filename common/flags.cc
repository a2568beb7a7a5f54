#include "common/flags.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace invar {
namespace {

constexpr size_t kHelpColumn = 30;
constexpr size_t kLineColumns = 80;

// One reader a type. NaN and infinities pass: it is for the server to refuse
// them, by field.
bool Read(const std::string& text, bool* value) {
  return absl::SimpleAtob(text, value);
}
bool Read(const std::string& text, int32_t* value) {
  return absl::SimpleAtoi(text, value);
}
bool Read(const std::string& text, uint64_t* value) {
  return absl::SimpleAtoi(text, value);
}
bool Read(const std::string& text, float* value) {
  return absl::SimpleAtof(text, value);
}
bool Read(const std::string& text, double* value) {
  return absl::SimpleAtod(text, value);
}
bool Read(const std::string& text, std::string* value) {
  *value = text;
  return true;
}
bool Read(const std::string& text, absl::Duration* value) {
  double seconds = 0;
  if (!absl::SimpleAtod(text, &seconds) || !(seconds > 0)) return false;
  // Beyond this a deadline would overflow gRPC's clock.
  *value = absl::Seconds(std::min(seconds, 1e9));
  return true;
}
bool Read(const std::string& text, std::vector<int32_t>* value) {
  value->clear();
  if (absl::StripAsciiWhitespace(text).empty()) return true;
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    int32_t number = 0;
    if (!absl::SimpleAtoi(part, &number)) return false;
    value->push_back(number);
  }
  return true;
}
bool Read(const std::string& text, std::map<int32_t, float>* value) {
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    const std::vector<absl::string_view> pair = absl::StrSplit(part, '=');
    int32_t id = 0;
    float bias = 0;
    if (pair.size() != 2 || !absl::SimpleAtoi(pair[0], &id) ||
        !absl::SimpleAtof(pair[1], &bias)) {
      return false;
    }
    (*value)[id] = bias;
  }
  return true;
}
bool Read(const std::string& text, std::vector<std::string>* value) {
  value->push_back(text);
  return true;
}
template <typename Value>
bool Read(const std::string& text, std::optional<Value>* value) {
  return Read(text, &value->emplace());
}

// What a value must be, for the error.
const char* Syntax(const bool*) { return "true or false"; }
const char* Syntax(const int32_t*) { return "an integer"; }
const char* Syntax(const uint64_t*) { return "an integer of at least 0"; }
const char* Syntax(const float*) { return "a number"; }
const char* Syntax(const double*) { return "a number"; }
const char* Syntax(const std::string*) { return "a text"; }
const char* Syntax(const absl::Duration*) {
  return "a number of seconds above 0";
}
const char* Syntax(const std::vector<int32_t>*) {
  return "integers with commas, for example 5,6,7";
}
const char* Syntax(const std::map<int32_t, float>*) {
  return "pairs ID=VALUE with commas, for example 5=1.5,7=-100";
}
const char* Syntax(const std::vector<std::string>*) { return "a text"; }
template <typename Value>
const char* Syntax(const std::optional<Value>*) {
  return Syntax(static_cast<const Value*>(nullptr));
}

// Appends text to line, wrapped, each further line begun at kHelpColumn.
std::string Wrap(std::string line, absl::string_view text) {
  if (line.size() + 2 > kHelpColumn) line += "\n";
  size_t column = line.back() == '\n' ? 0 : line.size();
  line.append(kHelpColumn - column, ' ');
  column = kHelpColumn;
  bool first = true;
  for (absl::string_view word : absl::StrSplit(text, ' ')) {
    if (!first && column + 1 + word.size() > kLineColumns) {
      absl::StrAppend(&line, "\n", std::string(kHelpColumn, ' '));
      column = kHelpColumn;
      first = true;
    }
    absl::StrAppend(&line, first ? "" : " ", word);
    column += word.size() + (first ? 0 : 1);
    first = false;
  }
  return line;
}

// Insertions, deletions, replacements and swaps of neighbours between two
// names (optimal string alignment distance).
size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<std::vector<size_t>> cost(a.size() + 1,
                                        std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        cost[i][j] = i + j;
        continue;
      }
      cost[i][j] = std::min({cost[i - 1][j] + 1, cost[i][j - 1] + 1,
                             cost[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        cost[i][j] = std::min(cost[i][j], cost[i - 2][j - 2] + 1);
      }
    }
  }
  return cost[a.size()][b.size()];
}

}  // namespace

void FlagSet::Section(const std::string& title) { section_ = title; }

template <typename Value>
void FlagSet::Add(const std::string& name, const std::string& value_name,
                  const std::string& help, Value* target) {
  flags_.push_back(
      {name, value_name, help, section_,
       [target](const std::string& text) { return Read(text, target); },
       Syntax(target)});
}

template void FlagSet::Add(const std::string&, const std::string&,
                           const std::string&, std::string*);
template void FlagSet::Add(const std::string&, const std::string&,
                           const std::string&, int32_t*);
template void FlagSet::Add(const std::string&, const std::string&,
                           const std::string&, absl::Duration*);
template void FlagSet::Add(const std::string&, const std::string&,
                           const std::string&, std::optional<std::string>*);
template void FlagSet::Add(const std::string&, const std::string&,
                           const std::string&, std::optional<int32_t>*);
template void FlagSet::Add(const std::string&, const std::string&,
                           const std::string&, std::optional<uint64_t>*);
template void FlagSet::Add(const std::string&, const std::string&,
                           const std::string&, std::optional<float>*);
template void FlagSet::Add(const std::string&, const std::string&,
                           const std::string&, std::optional<double>*);
template void FlagSet::Add(const std::string&, const std::string&,
                           const std::string&,
                           std::optional<std::vector<int32_t>>*);
template void FlagSet::Add(const std::string&, const std::string&,
                           const std::string&, std::vector<std::string>*);
template void FlagSet::Add(const std::string&, const std::string&,
                           const std::string&, std::map<int32_t, float>*);

template <typename Value>
void FlagSet::AddSwitch(const std::string& name, const std::string& help,
                        Value* target) {
  Add(name, /*value_name=*/"", help, target);
}

template void FlagSet::AddSwitch(const std::string&, const std::string&, bool*);
template void FlagSet::AddSwitch(const std::string&, const std::string&,
                                 std::optional<bool>*);

const FlagSet::Flag* FlagSet::Find(const std::string& name) const {
  for (const Flag& flag : flags_) {
    if (flag.name == name) return &flag;
  }
  return nullptr;
}

bool FlagSet::Has(const std::string& name) const {
  return Find(name) != nullptr;
}

bool FlagSet::TakesValue(const std::string& name) const {
  const Flag* flag = Find(name);
  return flag != nullptr && !flag->value_name.empty();
}

std::vector<std::string> FlagSet::Names() const {
  std::vector<std::string> names;
  for (const Flag& flag : flags_) names.push_back(flag.name);
  return names;
}

absl::Status FlagSet::Set(const std::string& name,
                          const std::optional<std::string>& value) {
  const Flag* flag = Find(name);
  if (flag == nullptr) {
    return absl::NotFoundError(absl::StrCat("unknown flag --", name));
  }
  if (!value.has_value() && !flag->value_name.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", name, " needs a value: ", flag->syntax));
  }
  if (!flag->read(value.value_or("true"))) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--", name, " must be ", flag->syntax, ", is \"", *value, "\""));
  }
  return absl::OkStatus();
}

std::string FlagSet::Help() const {
  std::string help;
  std::string section;
  for (const Flag& flag : flags_) {
    if (flag.section != section || help.empty()) {
      section = flag.section;
      absl::StrAppend(&help, help.empty() ? "" : "\n", section, ":\n");
    }
    absl::StrAppend(
        &help,
        Wrap(absl::StrCat("  --", flag.name, flag.value_name.empty() ? "" : " ",
                          flag.value_name),
             flag.help),
        "\n");
  }
  return help;
}

absl::StatusOr<CommandLine> CutCommandLine(
    const std::vector<std::string>& arguments,
    const std::function<bool(const std::string&)>& takes_value) {
  CommandLine line;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "--") {
      line.positional.insert(line.positional.end(), arguments.begin() + i + 1,
                             arguments.end());
      break;
    }
    if (argument == "-h") {
      line.flags.emplace_back("help", std::nullopt);
    } else if (absl::StartsWith(argument, "--")) {
      const size_t equals = argument.find('=');
      const std::string name = argument.substr(2, equals - 2);
      std::optional<std::string> value;
      if (equals != std::string::npos) {
        value = argument.substr(equals + 1);
      } else if (takes_value(name) && i + 1 < arguments.size()) {
        value = arguments[++i];
      }
      line.flags.emplace_back(name, value);
    } else if (argument.size() > 1 && argument[0] == '-') {
      return absl::InvalidArgumentError(absl::StrCat(
          "unknown flag ", argument, "; flags have two dashes, as in --help"));
    } else {
      line.positional.push_back(argument);
    }
  }
  return line;
}

std::optional<std::string> NearestName(const std::string& name,
                                       const std::vector<std::string>& names) {
  std::optional<std::string> nearest;
  size_t best = std::max<size_t>(1, name.size() / 3) + 1;
  for (const std::string& candidate : names) {
    const size_t distance = EditDistance(name, candidate);
    if (distance < best) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

std::string DidYouMean(const std::string& name, const std::string& dashes,
                       const std::vector<std::string>& names) {
  const auto nearest = NearestName(name, names);
  if (!nearest.has_value()) return ".";
  return absl::StrCat("; did you mean ", dashes, *nearest, "?");
}

absl::Status ReadFlags(const CommandLine& line, const std::string& help_command,
                       FlagSet* flags) {
  for (const auto& [name, value] : line.flags) {
    if (!flags->Has(name)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "unknown flag --", name, DidYouMean(name, "--", flags->Names()),
          " See ", help_command, " --help"));
    }
    if (absl::Status status = flags->Set(name, value); !status.ok()) {
      return absl::InvalidArgumentError(absl::string_view(status.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status ParseFlags(const std::string& program,
                        const std::vector<std::string>& arguments,
                        FlagSet* flags) {
  const auto line = CutCommandLine(arguments, [flags](const std::string& name) {
    return flags->TakesValue(name);
  });
  if (!line.ok()) return line.status();
  // Flags first: an unknown one explains the stray value behind it.
  if (absl::Status status = ReadFlags(*line, program, flags); !status.ok()) {
    return status;
  }
  if (line->positional.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("unexpected argument \"", line->positional[0], "\". See ",
                   program, " --help"));
}

}  // namespace invar
