#include "client/selftest/selftest.h"

#include <optional>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/command.h"
#include "client/cli/json.h"
#include "client/cli/table.h"

namespace invar {
namespace {

constexpr size_t kFingerprintDigits = 12;

class SelfTestCommand : public Command {
 public:
  std::string Name() const override { return "selftest"; }
  std::string Summary() const override {
    return "Do the answers of a deployment keep the contract, bit for bit?";
  }
  std::string Usage() const override { return "selftest [flags]"; }
  std::string Description() const override {
    return "Asks a running deployment the same things in different ways: "
           "alone and among\n"
           "strangers, with prompts of many lengths, from the prefix cache, "
           "scored, several\n"
           "at once, stopped, resumed, streamed. Compares every token, "
           "log-probability and\n"
           "byte of text, and prints how many bits differ: the acceptance "
           "test of new\n"
           "hardware, a new build, a new checkpoint. The prompts are drawn "
           "from the seed.\n"
           "\n"
           "Exits 0 if no bit differs, 1 if one does, 3 without a server that "
           "answers.\n";
  }
  std::string Examples() const override {
    return "  invar selftest\n"
           "  invar selftest --full --json\n"
           "  invar selftest --fingerprint 7e11b809   A pool that takes no new "
           "requests yet.\n";
  }

  void AddFlags(FlagSet& flags) override {
    flags.Section("What is asked");
    flags.AddSwitch("quick", "Some hundred requests. The default.", &quick_);
    flags.AddSwitch("full", "More and longer ones, for minutes.",
                    &options_.full);
    flags.Add("seed", "N",
              "What the prompts are drawn from. Default: a random one, which "
              "is printed.",
              &seed_);
    flags.Add("fingerprint", "DIGITS",
              "The beginning of the fingerprint whose workers shall answer "
              "(invar workers). Default: that of new requests.",
              &options_.fingerprint);
    flags.Add("deadline", "SECONDS", "For one request. Default: 3600.",
              &options_.pool.call.timeout);
    flags.Section("What is printed");
    flags.AddSwitch("json", "One JSON object instead of the table.", &json_);
  }

  int Run(const GlobalFlags& globals,
          const std::vector<std::string>& positional,
          Terminal& terminal) override {
    if (!positional.empty()) {
      return ReportUsage(terminal, "selftest takes no arguments");
    }
    if (quick_ && options_.full) {
      return ReportUsage(terminal, "--quick and --full exclude each other");
    }
    options_.seed = seed_.has_value() ? *seed_ : std::random_device()();
    auto client = Client::Connect(globals.address);
    if (!client.ok()) return ReportFailure(terminal, client.status());
    const SelfTest test =
        RunSelfTest(**client, options_, [&](const SelfTestRow& row) {
          if (!json_) ShowProgress(row, terminal);
        });
    if (!test.status.ok()) {
      return ReportFailure(
          terminal,
          absl::StrCat("the self-test (seed ", options_.seed, ") broke off"),
          test.status);
    }
    terminal.out << (json_ ? Dump(ToJson(test)) + "\n" : ToText(test));
    return test.Passed() ? kExitDone : kExitNo;
  }

 private:
  static void ShowProgress(const SelfTestRow& row, Terminal& terminal) {
    if (!terminal.err_is_terminal) return;
    terminal.err << row.dimension << ": " << row.comparisons
                 << " values compared" << std::endl;
  }

  std::string ToText(const SelfTest& test) const {
    std::vector<TableRow> table = {
        {"DIMENSION", "CELLS", "COMPARISONS", "DIFFERING BITS", "ASKED"}};
    int64_t comparisons = 0;
    int differing = 0;
    std::string remarks;
    for (const SelfTestRow& row : test.rows) {
      table.push_back({row.dimension, absl::StrCat(row.cells),
                       absl::StrCat(row.comparisons),
                       absl::StrCat(row.differing_bits), row.covers});
      comparisons += row.comparisons;
      differing += row.differing_bits > 0;
      for (const std::string& remark : {row.first_difference, row.note}) {
        if (remark.empty()) continue;
        absl::StrAppend(&remarks, row.dimension, ": ", remark, "\n");
      }
    }
    std::string text = absl::StrCat(
        "model ", test.model, ", fingerprint ",
        test.fingerprint.substr(0, kFingerprintDigits), ", mode ", test.mode,
        ", seed ", options_.seed, options_.full ? ", full" : ", quick", "\n\n",
        RenderTable(table), "\n", remarks);
    absl::StrAppend(
        &text,
        differing == 0
            ? absl::StrCat("no bit differs in ", comparisons, " comparisons\n")
            : absl::StrCat(differing, " of ", test.rows.size(),
                           " dimensions differ\n"));
    return text;
  }

  nlohmann::ordered_json ToJson(const SelfTest& test) const {
    nlohmann::ordered_json json = {
        {"passed", test.Passed()},
        {"model", test.model},
        {"fingerprint", test.fingerprint},
        {"mode", test.mode},
        {"seed", options_.seed},
        {"full", options_.full},
        {"dimensions", nlohmann::ordered_json::array()}};
    for (const SelfTestRow& row : test.rows) {
      json["dimensions"].push_back({{"dimension", row.dimension},
                                    {"cells", row.cells},
                                    {"comparisons", row.comparisons},
                                    {"differing_bits", row.differing_bits},
                                    {"first_difference", row.first_difference},
                                    {"note", row.note}});
    }
    return json;
  }

  SelfTestOptions options_;
  std::optional<uint64_t> seed_;
  bool quick_ = false;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeSelfTestCommand() {
  return std::make_unique<SelfTestCommand>();
}

}  // namespace invar
