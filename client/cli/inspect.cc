#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/command.h"
#include "client/cli/json.h"
#include "worker/model/checkpoint/inspection.h"

namespace invar {
namespace {

std::string Gibibytes(int64_t bytes) {
  return absl::StrFormat("%.2f GiB", static_cast<double>(bytes) / (1 << 30));
}

class InspectCommand : public Command {
 public:
  std::string Name() const override { return "inspect"; }
  std::string Summary() const override {
    return "What a model's files are, and whether they load.";
  }
  std::string Usage() const override { return "inspect FOLDER [flags]"; }
  std::string Description() const override {
    return "Reads config.json and the tensors' headers, not the weights: "
           "architecture,\n"
           "parameters, quantisation, bytes of KV cache a token, the memory "
           "that the given\n"
           "limits take, and everything for which a worker would refuse the "
           "folder (exit 1).\n"
           "Needs neither a server nor a GPU.\n";
  }
  std::string Examples() const override {
    return "  invar inspect deploy/models/invar-gsm-20m\n"
           "  invar inspect MODEL --context 32768 --sequences 64 --json\n";
  }

  void AddFlags(FlagSet& flags) override {
    flags.Section("Limits");
    flags.Add("context", "TOKENS", "Of each sequence. Default: 4096.",
              &context_);
    flags.Add("sequences", "COUNT", "At the same time. Default: 16.",
              &sequences_);
    flags.Section("What is printed");
    flags.AddSwitch("json", "One JSON object instead of lines.", &json_);
  }

  int Run(const GlobalFlags& globals,
          const std::vector<std::string>& positional,
          Terminal& terminal) override {
    if (positional.size() != 1 || context_ < 1 || sequences_ < 1) {
      return ReportUsage(terminal,
                         "inspect takes one folder and limits above 0. See "
                         "invar inspect --help");
    }
    const auto inspection = Inspect(positional[0]);
    if (!inspection.ok()) return ReportFailure(terminal, inspection.status());
    if (json_) {
      terminal.out << Dump(Json(*inspection)) << "\n";
    } else {
      Print(*inspection, terminal);
    }
    return inspection->problems.empty() ? kExitDone : kExitNo;
  }

 private:
  int64_t Tokens() const { return int64_t{context_} * sequences_; }

  void Print(const Inspection& inspection, Terminal& terminal) const {
    const ModelConfig& config = inspection.config;
    std::string out;
    if (config.layers > 0) {
      absl::StrAppend(
          &out, "architecture   ", ::invar::Name(config.architecture), ", ",
          config.layers, " layers, hidden ", config.hidden_size, ", ",
          config.heads, " heads, ", config.router.experts, " experts\n");
      const Quantization& quantization = config.quantization;
      absl::StrAppend(
          &out, "format         ", ::invar::Name(quantization.format),
          "; weight scales: ", ::invar::Name(quantization.weights),
          "; input scales: ", ::invar::Name(quantization.inputs), "\n");
    }
    absl::StrAppend(&out, "parameters     ", inspection.parameters, " in ",
                    inspection.tensors, " tensors, ", inspection.files,
                    " files\n");
    absl::StrAppend(&out, "weights        ",
                    Gibibytes(inspection.weight_bytes));
    for (const auto& [dtype, bytes] : inspection.bytes_by_dtype) {
      absl::StrAppend(&out, "  ", dtype, " ", Gibibytes(bytes));
    }
    absl::StrAppend(&out, "\n");
    if (config.layers > 0) {
      for (const auto& [name, bytes] :
           {std::pair("FP8", 1), std::pair("BF16", 2)}) {
        const int64_t token = inspection.KvBytesPerToken(bytes);
        absl::StrAppendFormat(
            &out,
            "KV cache       %-4s %d bytes a token; %d sequences of %d tokens: "
            "%s, with the weights %s\n",
            name, token, sequences_, context_, Gibibytes(token * Tokens()),
            Gibibytes(token * Tokens() + inspection.weight_bytes));
      }
    }
    for (const absl::Status& problem : inspection.problems) {
      absl::StrAppend(&out, "does not load  ", problem.message(), "\n");
    }
    terminal.out << out;
  }

  nlohmann::ordered_json Json(const Inspection& inspection) const {
    const ModelConfig& config = inspection.config;
    nlohmann::ordered_json problems = nlohmann::ordered_json::array();
    for (const absl::Status& problem : inspection.problems) {
      problems.push_back(std::string(problem.message()));
    }
    const int64_t token = inspection.KvBytesPerToken(1);
    return {{"architecture", ::invar::Name(config.architecture)},
            {"format", ::invar::Name(config.quantization.format)},
            {"weight_scales", ::invar::Name(config.quantization.weights)},
            {"input_scales", ::invar::Name(config.quantization.inputs)},
            {"files", inspection.files},
            {"tensors", inspection.tensors},
            {"parameters", inspection.parameters},
            {"weight_bytes", inspection.weight_bytes},
            {"bytes_by_dtype", inspection.bytes_by_dtype},
            {"fp8_kv_bytes_per_token", token},
            {"fp8_kv_bytes", token * Tokens()},
            {"loads", inspection.problems.empty()},
            {"problems", problems}};
  }

  int32_t context_ = 4096;
  int32_t sequences_ = 16;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeInspectCommand() {
  return std::make_unique<InspectCommand>();
}

}  // namespace invar
