#include "client/verify.h"

#include <fstream>
#include <iterator>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/command.h"
#include "client/cli/json.h"
#include "client/record.h"

namespace invar {
namespace {

using Kind = Verdict::Kind;

constexpr int kConcurrencyMax = 4096;
// Lines of text; a server of another fingerprint makes one of each record.
constexpr int kFindingsMax = 50;

std::string KindName(Kind kind) {
  switch (kind) {
    case Kind::kIdentical:
      return "identical";
    case Kind::kDiffers:
      return "differs";
    case Kind::kCannotTell:
      return "cannot tell";
  }
  return "";
}

class VerifyCommand : public Command {
 public:
  std::string Name() const override { return "verify"; }
  std::string Summary() const override {
    return "Have recorded answers written again: are they the same?";
  }
  std::string Usage() const override { return "verify (FILE | -) [flags]"; }
  std::string Description() const override {
    return "Asks the request of every record again, pinned to the fingerprint "
           "that wrote the\n"
           "answer, and compares what comes back bit by bit: receipt, tokens, "
           "text,\n"
           "log-probabilities, finish. A record is a line of JSON "
           "(GenerationRecord in\n"
           "proto/invar/v1/record.proto), as invar generate --receipt and "
           "invar eval\n"
           "--receipts write it; - reads standard input. For each record that "
           "is not\n"
           "identical, prints the first receipt field, position (with both "
           "tokens and\n"
           "log-probabilities) or other field that differs, or why nobody can "
           "tell: with\n"
           "another fingerprint, the first field of the numerics that "
           "differs.\n"
           "\n"
           "Exits 0 if all are identical, 1 if one differs, 2 if a line is no "
           "record, 3 if\n"
           "none differs but one cannot be told (other fingerprint, no "
           "server).\n";
  }
  std::string Examples() const override {
    return "  invar generate --prompt \"2 + 2 =\" --receipt answer.json\n"
           "  invar verify answer.json\n"
           "  invar eval mgsm --receipts mgsm.jsonl && invar verify "
           "mgsm.jsonl\n"
           "  zcat archive.jsonl.gz | invar verify - --concurrency 8 --json\n";
  }

  void AddFlags(FlagSet& flags) override {
    flags.Section("How");
    flags.Add("concurrency", "N", "Records in flight. Default: 64.",
              &options_.concurrency);
    flags.Add("deadline", "SECONDS", "For one record. Default: 3600.",
              &options_.call.timeout);
    flags.Add("patience", "SECONDS",
              "How long to wait for a server or a worker that is away. "
              "Default: 30.",
              &options_.outage_patience);
    flags.Section("What is printed");
    flags.AddSwitch("json",
                    "One JSON object: records, identical, differ, cannot_tell, "
                    "and in findings what is not identical.",
                    &json_);
  }

  int Run(const GlobalFlags& globals,
          const std::vector<std::string>& positional,
          Terminal& terminal) override {
    if (positional.size() != 1) {
      return ReportUsage(terminal,
                         "verify needs one FILE of records, or - for standard "
                         "input. See invar verify --help");
    }
    if (options_.concurrency < 1 || options_.concurrency > kConcurrencyMax) {
      return ReportUsage(
          terminal,
          absl::StrCat("--concurrency must be from 1 to ", kConcurrencyMax,
                       ", is ", options_.concurrency));
    }
    auto file = ReadRecords(positional[0], terminal);
    if (!file.ok()) return ReportFailure(terminal, file.status());
    auto client = Client::Connect(globals.address);
    if (!client.ok()) return ReportFailure(terminal, client.status());

    std::vector<Verdict> verdicts(file->records.size());
    std::map<Kind, int> counts;
    VerifyRecords(**client, file->records, options_,
                  [&](size_t i, const Verdict& verdict) {
                    verdicts[i] = verdict;
                    ++counts[verdict.kind];
                  });
    if (json_) {
      PrintJson(*file, verdicts, counts, terminal);
    } else {
      PrintText(positional[0], *file, verdicts, counts, terminal);
    }
    if (counts[Kind::kDiffers] > 0) return kExitNo;
    return counts[Kind::kCannotTell] > 0 ? kExitNoServer : kExitDone;
  }

 private:
  static absl::StatusOr<RecordFile> ReadRecords(const std::string& path,
                                                Terminal& terminal) {
    std::string text;
    if (path == "-") {
      text = {std::istreambuf_iterator<char>(terminal.in), {}};
    } else {
      std::ifstream file(path, std::ios::binary);
      text = {std::istreambuf_iterator<char>(file), {}};
      if (!file.is_open() || file.bad()) {
        return absl::NotFoundError(absl::StrCat("cannot read ", path));
      }
    }
    auto records = ParseRecords(text, path == "-" ? "standard input" : path);
    if (records.ok() && records->records.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path,
                       " holds no record; invar generate --receipt and "
                       "invar eval --receipts write them"));
    }
    return records;
  }

  static void PrintText(const std::string& path, const RecordFile& file,
                        const std::vector<Verdict>& verdicts,
                        std::map<Kind, int>& counts, Terminal& terminal) {
    int shown = 0;
    for (size_t i = 0; i < verdicts.size(); ++i) {
      if (verdicts[i].kind == Kind::kIdentical || shown == kFindingsMax) {
        continue;
      }
      ++shown;
      terminal.out << path << ":" << file.lines[i] << ": "
                   << KindName(verdicts[i].kind) << ": " << verdicts[i].detail
                   << "\n";
    }
    const int findings = counts[Kind::kDiffers] + counts[Kind::kCannotTell];
    if (findings > shown) {
      terminal.out << "and " << findings - shown
                   << " more; --json has them all\n";
    }
    terminal.out << absl::StrFormat(
        "%d record%s: %d identical, %d differ%s, %d cannot be told\n",
        verdicts.size(), verdicts.size() == 1 ? "" : "s",
        counts[Kind::kIdentical], counts[Kind::kDiffers],
        counts[Kind::kDiffers] == 1 ? "s" : "", counts[Kind::kCannotTell]);
  }

  static void PrintJson(const RecordFile& file,
                        const std::vector<Verdict>& verdicts,
                        std::map<Kind, int>& counts, Terminal& terminal) {
    nlohmann::ordered_json json = {
        {"records", verdicts.size()},
        {"identical", counts[Kind::kIdentical]},
        {"differ", counts[Kind::kDiffers]},
        {"cannot_tell", counts[Kind::kCannotTell]},
        {"findings", nlohmann::ordered_json::array()}};
    for (size_t i = 0; i < verdicts.size(); ++i) {
      if (verdicts[i].kind == Kind::kIdentical) continue;
      json["findings"].push_back(
          {{"line", file.lines[i]},
           {"request_id", file.records[i].request().request_id()},
           {"verdict", KindName(verdicts[i].kind)},
           {"detail", verdicts[i].detail}});
    }
    terminal.out << Dump(json) << "\n";
  }

  PoolOptions options_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeVerifyCommand() {
  return std::make_unique<VerifyCommand>();
}

}  // namespace invar
