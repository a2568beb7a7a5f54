#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/command.h"
#include "client/cli/json.h"
#include "client/cli/progress.h"
#include "client/embedded_files.h"
#include "client/evaluation.h"
#include "client/mgsm.h"
#include "client/record.h"

namespace invar {
namespace {

constexpr char kProtocol[] = "simple-evals";
constexpr int kConcurrencyMax = 4096;

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string contents{std::istreambuf_iterator<char>(file), {}};
  if (!file.is_open() || file.bad()) {
    return absl::NotFoundError(absl::StrCat("cannot read ", path));
  }
  return contents;
}

// A file of the shipped set; NOT_FOUND names those there are.
absl::StatusOr<std::string> ReadEmbedded(const std::string& name) {
  std::vector<absl::string_view> names;
  for (const EmbeddedFile& file : EmbeddedFiles()) {
    if (file.name == name) return std::string(file.contents);
    names.push_back(file.name);
  }
  return absl::NotFoundError(absl::StrCat(
      "the shipped set has no ", name, " (it has ", absl::StrJoin(names, ", "),
      "); name a folder of MGSM files with --data DIR"));
}

class EvalCommand : public Command {
 public:
  std::string Name() const override { return "eval"; }
  std::string Summary() const override {
    return "Score the model on MGSM, with a digest of every answer.";
  }
  std::string Usage() const override { return "eval mgsm [flags]"; }
  std::string Description() const override {
    return "Asks every problem of an MGSM language once, greedily, by the "
           "simple-evals\n"
           "protocol: one user message, no system message; the last number "
           "after the\n"
           "language's word for \"Answer\" must equal the solution. Prints the "
           "score, and a\n"
           "digest of all transcripts (tokens, finish reasons, texts): equal "
           "digests are\n"
           "equal answers, whatever the concurrency. What a full queue "
           "refuses\nis sent again.\n"
           "\n"
           "Without --data it asks the problems shipped inside this program, "
           "which are not\n"
           "MGSM's: their score says nothing of the real benchmark. The real "
           "files are\n"
           "mgsm_LANG.tsv in google-research/url-nlp on GitHub, folder mgsm.\n";
  }
  std::string Examples() const override {
    return "  invar eval mgsm\n"
           "  invar eval mgsm --concurrency 1 --min-score 0.8\n"
           "  invar eval mgsm --data mgsm/ --lang de --output transcripts.jsonl"
           "\n  invar eval mgsm --json --limit 25\n";
  }

  void AddFlags(FlagSet& flags) override {
    flags.Section("What is asked");
    flags.Add("lang", "LANG",
              absl::StrCat("One of ", absl::StrJoin(MgsmLanguages(), ", "),
                           ". Default: en."),
              &options_.language);
    flags.Add("data", "DIR",
              "Folder of mgsm_LANG.tsv: question, tab, answer. Default: the "
              "shipped problems.",
              &data_);
    flags.Add("instructions", "FILE",
              "JSON object of language to instruction, with {input} for the "
              "question. Default: instructions.json in DIR.",
              &instructions_);
    flags.Add("limit", "N", "Only the first N problems.", &limit_);
    flags.Add("max-tokens", "N", "Tokens of one answer. Default: 2048.",
              &options_.max_tokens);
    flags.Add("model", "NAME", "Default: the one that the server serves.",
              &options_.model);
    flags.Section("How");
    flags.Add("concurrency", "N", "Requests in flight. Default: 64.",
              &options_.pool.concurrency);
    flags.Add("deadline", "SECONDS", "For one request. Default: 3600.",
              &options_.pool.call.timeout);
    flags.Section("What comes out");
    flags.Add("min-score", "X", "Exit 1 if the score is below.", &min_score_);
    flags.AddSwitch("json",
                    "One JSON object instead of the summary: score, n, "
                    "correct, digest, fingerprint, latency_seconds, "
                    "output_tokens_per_second, ...",
                    &json_);
    flags.Add("receipts", "FILE",
              "Write the record of each answer there, with log-probabilities, "
              "for invar verify.",
              &receipts_);
    flags.Add("output", "FILE",
              "Write the transcripts, one JSON object a line. Equal runs write "
              "equal files.",
              &output_);
  }

  int Run(const GlobalFlags& globals,
          const std::vector<std::string>& positional,
          Terminal& terminal) override {
    if (positional.size() != 1 || positional[0] != "mgsm") {
      return ReportUsage(terminal,
                         "eval needs the name of one evaluation; there is "
                         "\"mgsm\": invar eval mgsm");
    }
    const absl::Status valid = CheckFlags();
    if (!valid.ok()) return ReportFailure(terminal, valid);
    auto problems = LoadProblems();
    if (!problems.ok()) return ReportFailure(terminal, problems.status());
    // Before the work, not after it, so that a wrong path costs nothing.
    std::ofstream output;
    if (!output_.empty()) {
      output.open(output_, std::ios::binary);
      if (!output) return ReportUsage(terminal, "cannot write " + output_);
    }

    std::ofstream receipts;
    if (!receipts_.empty()) {
      receipts.open(receipts_, std::ios::binary);
      if (!receipts) return ReportUsage(terminal, "cannot write " + receipts_);
      options_.keep_records = true;
    }

    auto client = Client::Connect(globals.address);
    if (!client.ok()) return ReportFailure(terminal, client.status());
    Progress progress(terminal);
    options_.pool.on_retry = [&](const grpc::Status& refusal) {
      progress.ShowRetry(refusal);
    };
    Evaluation evaluation =
        EvaluateMgsm(**client, *problems, options_,
                     [&](const Evaluation& now) { progress.Show(now); });
    progress.End();
    if (!output_.empty()) {
      WriteTranscripts(*problems, evaluation, output);
      output.close();
      if (!output) return ReportUsage(terminal, "cannot write " + output_);
    }
    if (!receipts_.empty() && evaluation.result.status.ok()) {
      const grpc::Status status =
          AddNumerics(**client, options_.pool.call, evaluation.records);
      if (!status.ok()) return ReportFailure(terminal, "the receipts", status);
      for (const auto& record : evaluation.records) {
        receipts << RecordLine(record);
      }
      receipts.close();
      if (!receipts) return ReportUsage(terminal, "cannot write " + receipts_);
    }
    return Report(evaluation, terminal);
  }

 private:
  absl::Status CheckFlags() const {
    if (options_.pool.concurrency < 1 ||
        options_.pool.concurrency > kConcurrencyMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("--concurrency must be from 1 to ", kConcurrencyMax,
                       ", is ", options_.pool.concurrency));
    }
    if (limit_.value_or(1) < 1) {
      return absl::InvalidArgumentError("--limit must be at least 1");
    }
    if (!(min_score_.value_or(0) >= 0 && min_score_.value_or(0) <= 1)) {
      return absl::InvalidArgumentError("--min-score must be from 0 to 1");
    }
    return MgsmAnswerPrefix(options_.language).status();
  }

  // Reads the problems, and the instruction into options_.
  absl::StatusOr<std::vector<MgsmProblem>> LoadProblems() {
    const std::string problems_name =
        absl::StrCat("mgsm_", options_.language, ".tsv");
    std::string problems_path = problems_name;
    std::string instructions_path = instructions_;
    if (!data_.empty()) {
      const std::filesystem::path folder = data_;
      problems_path = (folder / problems_name).string();
      if (instructions_.empty()) {
        instructions_path = (folder / "instructions.json").string();
      }
    }
    const auto text =
        data_.empty() ? ReadEmbedded(problems_name) : ReadFile(problems_path);
    if (!text.ok()) return text.status();
    auto problems = ParseMgsmProblems(*text, problems_path);
    if (!problems.ok()) return problems.status();

    const auto instructions = instructions_path.empty()
                                  ? ReadEmbedded("instructions.json")
                                  : ReadFile(instructions_path);
    if (!instructions.ok()) {
      return absl::NotFoundError(
          absl::StrCat(instructions.status().message(),
                       instructions_.empty()
                           ? "; name the instructions with --instructions FILE"
                           : ""));
    }
    auto instruction = ParseMgsmInstruction(
        *instructions, options_.language,
        instructions_path.empty() ? "instructions.json" : instructions_path);
    if (!instruction.ok()) return instruction.status();
    options_.instruction = *std::move(instruction);
    if (limit_ && static_cast<size_t>(*limit_) < problems->size()) {
      problems->resize(*limit_);
    }
    return problems;
  }

  // Nothing that differs between equal runs.
  static void WriteTranscripts(const std::vector<MgsmProblem>& problems,
                               const Evaluation& evaluation,
                               std::ostream& output) {
    for (size_t i = 0; i < evaluation.transcripts.size(); ++i) {
      const Transcript& transcript = evaluation.transcripts[i];
      if (!transcript.done) continue;
      output << Dump({{"index", i},
                      {"question", problems[i].question},
                      {"answer", problems[i].answer},
                      {"prediction", transcript.prediction},
                      {"correct", transcript.correct},
                      {"finish_reason", transcript.finish_reason},
                      {"text", transcript.text},
                      {"token_ids", transcript.token_ids},
                      {"fingerprint", transcript.fingerprint}})
             << "\n";
    }
  }

  int Report(const Evaluation& evaluation, Terminal& terminal) const {
    const PoolResult& result = evaluation.result;
    if (!result.status.ok()) {
      const int code = ReportFailure(
          terminal,
          absl::StrFormat("problem %d failed after %d attempt(s), %d of %d "
                          "done",
                          result.index + 1, result.attempts, evaluation.done,
                          evaluation.transcripts.size()),
          result.status);
      return code;
    }
    if (evaluation.fingerprints.size() > 1) {
      terminal.err << "invar: the server changed during the evaluation, its "
                      "score mixes fingerprints: "
                   << absl::StrJoin(evaluation.fingerprints, ", ") << "\n";
    }
    // As counts, so that 200 of 250 is never below 0.8 by a rounding.
    const bool passed = evaluation.correct + 1e-9 >=
                        min_score_.value_or(0) * evaluation.transcripts.size();
    if (json_) {
      terminal.out << Dump(ToJson(evaluation)) << "\n";
    } else {
      terminal.out << Summary(evaluation);
    }
    if (passed) return kExitDone;
    terminal.err << absl::StrFormat("invar: score %.3f is below %g\n",
                                    evaluation.Score(), *min_score_);
    return kExitNo;
  }

  double TokensPerSecond(const Evaluation& evaluation) const {
    const double seconds = absl::ToDoubleSeconds(evaluation.elapsed);
    return seconds > 0 ? evaluation.output_tokens / seconds : 0;
  }

  std::string FirstFingerprint(const Evaluation& evaluation) const {
    return evaluation.fingerprints.empty() ? "" : evaluation.fingerprints[0];
  }

  nlohmann::ordered_json ToJson(const Evaluation& evaluation) const {
    nlohmann::ordered_json json = {
        {"evaluation", "mgsm"},
        {"protocol", kProtocol},
        {"lang", options_.language},
        {"data", data_.empty() ? "shipped" : data_},
        {"score", evaluation.Score()},
        {"n", evaluation.transcripts.size()},
        {"correct", evaluation.correct},
        {"digest", evaluation.digest},
        {"fingerprint", FirstFingerprint(evaluation)},
        {"concurrency", options_.pool.concurrency},
        {"latency_seconds", absl::ToDoubleSeconds(evaluation.elapsed)},
        {"output_tokens", evaluation.output_tokens},
        {"output_tokens_per_second", TokensPerSecond(evaluation)},
        {"retries", evaluation.result.retries}};
    if (evaluation.fingerprints.size() > 1) {
      json["fingerprints"] = evaluation.fingerprints;
    }
    return json;
  }

  std::string Summary(const Evaluation& evaluation) const {
    std::string summary = absl::StrFormat(
        "score        %.3f (%d of %d) on %s, %s, %s protocol\n",
        evaluation.Score(), evaluation.correct, evaluation.transcripts.size(),
        data_.empty() ? "the shipped problems" : "MGSM", options_.language,
        kProtocol);
    absl::StrAppendFormat(&summary, "digest       %s\n", evaluation.digest);
    absl::StrAppendFormat(&summary, "fingerprint  %s\n",
                          FirstFingerprint(evaluation));
    absl::StrAppendFormat(
        &summary, "time         %.1f s at concurrency %d, %.0f output tokens/s",
        absl::ToDoubleSeconds(evaluation.elapsed), options_.pool.concurrency,
        TokensPerSecond(evaluation));
    if (evaluation.result.retries > 0) {
      absl::StrAppendFormat(&summary, ", %d retries",
                            evaluation.result.retries);
    }
    absl::StrAppend(&summary, "\n");
    return summary;
  }

  EvaluationOptions options_;
  std::string data_;
  std::string instructions_;
  std::string output_;
  std::string receipts_;
  std::optional<int32_t> limit_;
  std::optional<double> min_score_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeEvalCommand() {
  return std::make_unique<EvalCommand>();
}

}  // namespace invar
