#include <fstream>
#include <istream>
#include <iterator>
#include <optional>

#include "client/cli/command.h"
#include "client/cli/json.h"
#include "client/cli/request_flags.h"
#include "client/record.h"

namespace invar {
namespace {

class GenerateCommand : public Command {
 public:
  std::string Name() const override { return "generate"; }
  std::string Summary() const override {
    return "Go on with a text, answer a message, or score a text.";
  }
  std::string Usage() const override {
    return "generate (--prompt TEXT | --chat TEXT | --token-ids IDS) [flags]";
  }
  std::string Description() const override {
    return "Writes the answer to standard output as it comes, or with --json "
           "one object at\n"
           "the end: request_id, seed, text, token_ids, finish_reason (STOP or "
           "LENGTH),\n"
           "logprobs, top_logprobs, receipt, prompt_logprobs (one number for "
           "each prompt\n"
           "token after the first), usage. With --n above 1 the fields of each "
           "answer stand\n"
           "in `answers`. Numbers read back, as 32-bit floats, to the same "
           "bits.\n";
  }
  std::string Examples() const override {
    return "  invar generate --prompt \"Once upon a time\" --max-tokens 64\n"
           "  invar generate --chat \"How many eggs are 3 boxes of 12?\"\n"
           "  invar generate --chat \"Name a colour.\" --temperature 1 --seed "
           "7 "
           "--n 4\n"
           "  invar generate --prompt - --json < question.txt\n"
           "  invar generate --prompt \"2 + 2 =\" --receipt a.json && invar "
           "verify a.json\n"
           "  invar generate --json --token-ids 5,6,7 --max-tokens 0 "
           "--prompt-logprobs\n";
  }

  void AddFlags(FlagSet& flags) override {
    flags.Section("The prompt, exactly one");
    flags.Add("prompt", "TEXT",
              "Plain text to go on with; - reads standard input.", &prompt_);
    flags.Add("chat", "TEXT",
              "One user message, in the model's chat format; - reads standard "
              "input.",
              &chat_);
    flags.Add("token-ids", "ID,...", "Exactly these ids; nothing is added.",
              &token_ids_);
    flags.Section("What is printed");
    flags.AddSwitch("json", "One JSON object instead of the text.", &json_);
    flags.AddSwitch("logprobs",
                    "The log-probability of each output token (needs --json).",
                    &logprobs_);
    flags.Add(
        "top-logprobs", "N",
        "The N likeliest tokens at each position, too (needs --logprobs).",
        &top_logprobs_);
    flags.AddSwitch("prompt-logprobs",
                    "The log-probability of each prompt token after the first "
                    "(needs --json).",
                    &prompt_logprobs_);
    flags.AddSwitch("no-skip-special-tokens",
                    "Leave special tokens in the text.", &keep_special_);
    flags.Add("receipt", "FILE",
              "Write the answer's record there, for invar verify.", &receipt_);
    flags.Add("n", "N", "Answers to write, up to 16. Default: 1.", &n_);
    flags.Add("request-id", "ID",
              "Names the request in logs and receipts. Default: made up by the "
              "server.",
              &request_id_);
    request_flags_.AddTo(flags);
  }

  int Run(const GlobalFlags& globals,
          const std::vector<std::string>& positional,
          Terminal& terminal) override {
    if (!positional.empty()) {
      return ReportUsage(terminal,
                         "generate takes no argument \"" + positional[0] +
                             "\"; write --prompt TEXT or --chat TEXT");
    }
    if (prompt_.has_value() + chat_.has_value() + token_ids_.has_value() != 1) {
      return ReportUsage(
          terminal,
          "generate needs exactly one of --prompt, --chat and --token-ids. "
          "See invar generate --help");
    }
    if (!json_ && (logprobs_ || prompt_logprobs_ || top_logprobs_)) {
      return ReportUsage(terminal,
                         "log-probabilities are printed only with --json");
    }
    // Before the work, not after it, so that a wrong path costs nothing.
    std::ofstream receipt;
    if (!receipt_.empty()) {
      receipt.open(receipt_, std::ios::binary);
      if (!receipt) return ReportUsage(terminal, "cannot write " + receipt_);
    }
    const v1::GenerateRequest request = MakeRequest(terminal);
    auto client = Client::Connect(globals.address);
    if (!client.ok()) return ReportFailure(terminal, client.status());
    v1::GenerateOnceResponse whole;
    const int code = Print(**client, request, terminal, whole);
    if (code != kExitDone || receipt_.empty()) return code;
    std::vector<v1::GenerationRecord> records = {MakeRecord(request, whole)};
    const grpc::Status status =
        AddNumerics(**client, {.timeout = request_flags_.deadline()}, records);
    if (!status.ok()) return ReportFailure(terminal, "the receipt", status);
    receipt << RecordLine(records[0]);
    receipt.close();
    if (!receipt) return ReportUsage(terminal, "cannot write " + receipt_);
    return kExitDone;
  }

 private:
  static std::string TextOrInput(const std::string& text, Terminal& terminal) {
    if (text != "-") return text;
    return {std::istreambuf_iterator<char>(terminal.in), {}};
  }

  v1::GenerateRequest MakeRequest(Terminal& terminal) const {
    v1::GenerateRequest request;
    request_flags_.Fill(request);
    if (prompt_) request.set_text(TextOrInput(*prompt_, terminal));
    if (chat_) {
      v1::ChatMessage* message = request.mutable_chat()->add_messages();
      message->set_role("user");
      message->set_content(TextOrInput(*chat_, terminal));
    }
    if (token_ids_) {
      request.mutable_token_ids()->mutable_ids()->Add(token_ids_->begin(),
                                                      token_ids_->end());
    }
    request.set_request_id(request_id_);
    if (n_) request.mutable_sampling()->set_n(*n_);
    v1::Output& output = *request.mutable_output();
    if (logprobs_) output.set_logprobs(*logprobs_);
    if (top_logprobs_) output.set_top_logprobs(*top_logprobs_);
    if (prompt_logprobs_) output.set_prompt_logprobs(*prompt_logprobs_);
    if (keep_special_) output.set_skip_special_tokens(false);
    return request;
  }

  // Prints the answer and fills in `whole`.
  int Print(Client& client, const v1::GenerateRequest& request,
            Terminal& terminal, v1::GenerateOnceResponse& whole) const {
    // Answers written side by side cannot share one stream of text.
    const bool streams = !json_ && n_.value_or(1) == 1;
    GenerateMetadata metadata;
    const grpc::Status status = client.Generate(
        request, {.timeout = request_flags_.deadline()},
        [&](const v1::GenerateResponse& event) {
          if (streams) terminal.out << event.delta().text() << std::flush;
          AddEvent(event, whole);
          return terminal.out.good();
        },
        &metadata);
    if (!status.ok()) {
      if (streams && whole.answers_size() > 0) terminal.out << std::endl;
      return ReportFailure(terminal, "", status);
    }
    if (json_) {
      terminal.out << Dump(ToJson(whole, metadata)) << "\n";
    } else if (streams) {
      if (whole.answers_size() > 0 && !whole.answers(0).text().empty()) {
        terminal.out << "\n";
      }
    } else {
      for (int i = 0; i < whole.answers_size(); ++i) {
        terminal.out << "--- answer " << i << "\n"
                     << whole.answers(i).text() << "\n";
      }
    }
    return kExitDone;
  }

  std::optional<std::string> prompt_;
  std::optional<std::string> chat_;
  std::optional<std::vector<int32_t>> token_ids_;
  bool json_ = false;
  std::optional<bool> logprobs_;
  std::optional<int32_t> top_logprobs_;
  std::optional<bool> prompt_logprobs_;
  bool keep_special_ = false;
  std::string receipt_;
  std::optional<int32_t> n_;
  std::string request_id_;
  RequestFlags request_flags_;
};

}  // namespace

std::unique_ptr<Command> MakeGenerateCommand() {
  return std::make_unique<GenerateCommand>();
}

}  // namespace invar
