#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/command.h"
#include "client/cli/json.h"
#include "worker/model/checkpoint/inspection.h"
#include "worker/model/checkpoint/manifest.h"

namespace invar {
namespace {

std::string Gibibytes(int64_t bytes) {
  return absl::StrFormat("%.2f GiB", static_cast<double>(bytes) / (1 << 30));
}

// As the config writes kv_cache.dtype.
constexpr std::pair<const char*, KvDtype> kKvDtypes[] = {
    {"FP8_E5M2", KvDtype::kFp8E5m2},
    {"FP8_E4M3", KvDtype::kFp8E4m3},
    {"BF16", KvDtype::kBf16},
    {"FP32", KvDtype::kFp32}};

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
           "limits take (weights and cache: a step's own comes on top), and "
           "everything for which\n"
           "a worker would refuse the folder (exit 1). Needs neither a server "
           "nor a GPU.\n";
  }
  std::string Examples() const override {
    return "  invar inspect deploy/models/invar-gsm-20m\n"
           "  invar inspect MODEL --context 32768 --sequences 64 --json\n"
           "  invar inspect MODEL --write-manifest   # from now on, refuse "
           "what differs\n";
  }

  void AddFlags(FlagSet& flags) override {
    flags.Section("Limits");
    flags.Add("context", "TOKENS", "Of each sequence. Default: 4096.",
              &context_);
    flags.Add("sequences", "COUNT", "At the same time. Default: 16.",
              &sequences_);
    flags.Section("What is done");
    flags.AddSwitch("write-manifest",
                    "Reads every weight and writes FOLDER/invar-manifest.json, "
                    "which pins what is there: workers then refuse a folder "
                    "with any other byte, by the name of file and tensor.",
                    &write_manifest_);
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
    if (write_manifest_) {
      const absl::Status written = WriteManifest(positional[0]);
      if (!written.ok()) return ReportFailure(terminal, written);
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
  static absl::Status WriteManifest(const std::string& folder) {
    const absl::StatusOr<Manifest> manifest = MakeManifest(folder);
    if (!manifest.ok()) return manifest.status();
    std::ofstream file(manifest->path, std::ios::binary);
    file << ManifestText(*manifest);
    file.close();
    return file ? absl::OkStatus()
                : absl::UnknownError("cannot write " + manifest->path);
  }

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
      for (const auto& [name, dtype] : kKvDtypes) {
        const int64_t cache = inspection.KvBytes(dtype, context_, sequences_);
        absl::StrAppendFormat(
            &out,
            "KV cache       %-8s %d bytes a token; %d sequences of %d tokens: "
            "%s, with the weights %s\n",
            name, inspection.KvBytesPerToken(dtype), sequences_, context_,
            Gibibytes(cache), Gibibytes(cache + inspection.weight_bytes));
      }
    }
    if (!inspection.pinned_digest.empty()) {
      absl::StrAppend(&out, "manifest       pins the weights digest ",
                      inspection.pinned_digest, "\n");
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
    nlohmann::ordered_json cache = nlohmann::ordered_json::object();
    for (const auto& [name, dtype] : kKvDtypes) {
      const int64_t bytes = inspection.KvBytes(dtype, context_, sequences_);
      cache[name] = {{"bytes_per_token", inspection.KvBytesPerToken(dtype)},
                     {"bytes", bytes},
                     {"bytes_with_weights", bytes + inspection.weight_bytes}};
    }
    return {{"architecture", ::invar::Name(config.architecture)},
            {"format", ::invar::Name(config.quantization.format)},
            {"weight_scales", ::invar::Name(config.quantization.weights)},
            {"input_scales", ::invar::Name(config.quantization.inputs)},
            {"files", inspection.files},
            {"tensors", inspection.tensors},
            {"parameters", inspection.parameters},
            {"weight_bytes", inspection.weight_bytes},
            {"bytes_by_dtype", inspection.bytes_by_dtype},
            {"kv_cache", cache},
            {"pinned_weights_digest", inspection.pinned_digest},
            {"loads", inspection.problems.empty()},
            {"problems", problems}};
  }

  int32_t context_ = 4096;
  int32_t sequences_ = 16;
  bool json_ = false;
  bool write_manifest_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeInspectCommand() {
  return std::make_unique<InspectCommand>();
}

}  // namespace invar
