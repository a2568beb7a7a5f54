#include <algorithm>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/command.h"
#include "client/cli/json.h"
#include "kernels/cuda/support.h"
#include "scheduler/tokenizer/tokenizer.h"
#include "worker/model/checkpoint/inspection.h"
#include "worker/model/checkpoint/manifest.h"
#include "worker/model/checkpoint/memory_needs.h"

namespace invar {
namespace {

// "14.63 GiB".
std::string Size(int64_t bytes) {
  double size = static_cast<double>(bytes) / 1024;
  for (const char* unit : {"KiB", "MiB"}) {
    if (size < 100) return absl::StrFormat("%.2f %s", size, unit);
    size /= 1024;
  }
  return absl::StrFormat("%.2f GiB", size);
}

int64_t All(const StepNeeds& step) {
  return step.activations + step.logits + step.reserved;
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
    return "Reads config.json, the tokenizer and the tensors' headers, not the "
           "weights:\n"
           "architecture, parameters, quantisation, bytes of KV cache a token, "
           "the memory that\n"
           "a worker takes at the given limits on a CPU and on a GPU, "
           "everything for which\n"
           "the folder would be refused (exit 1), and for which a GPU worker "
           "alone would.\n"
           "Needs neither a server nor a GPU.\n";
  }
  std::string Examples() const override {
    return "  invar inspect deploy/models/invar-gsm-20m\n"
           "  invar inspect MODEL --context 32768 --sequences 64 --json\n"
           "  invar inspect MODEL --write-manifest   # from now on, refuse "
           "what differs\n";
  }

  void AddFlags(FlagSet& flags) override {
    flags.Section("Limits");
    flags.Add("context", "TOKENS",
              "Of each sequence, at most what the model has. "
              "Default: 4096.",
              &context_);
    flags.Add("sequences", "COUNT", "At the same time. Default: 16.",
              &sequences_);
    flags.Add("step-tokens", "COUNT",
              "As limits.max_step_tokens. Default: 512.", &step_tokens_);
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
    if (positional.size() != 1 || context_ < 1 || sequences_ < 1 ||
        step_tokens_ < 1) {
      return ReportUsage(terminal,
                         "inspect takes one folder and limits above 0. See "
                         "invar inspect --help");
    }
    if (write_manifest_) {
      const absl::Status written = WriteManifest(positional[0]);
      if (!written.ok()) return ReportFailure(terminal, written);
    }
    auto inspection = Inspect(positional[0]);
    if (!inspection.ok()) return ReportFailure(terminal, inspection.status());
    CheckTokenizer(positional[0], &*inspection);
    // As a server does with limits.max_context_tokens.
    const int64_t positions = inspection->config.max_position_embeddings;
    if (positions > 0) context_ = std::min<int64_t>(context_, positions);
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

  // The scheduler and the worker refuse a folder without a tokenizer, or with
  // that of another model.
  void CheckTokenizer(const std::string& folder, Inspection* inspection) {
    const auto tokenizer = Tokenizer::Load(folder);
    if (tokenizer.ok()) {
      tokenizer_ids_ = (*tokenizer)->vocab_size();
    } else {
      inspection->problems.push_back(tokenizer.status());
    }
  }

  ServingLimits Limits() const {
    return {.context = context_,
            .sequences = sequences_,
            .step_tokens = step_tokens_};
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
                    inspection.files == 1 ? " file\n" : " files\n");
    absl::StrAppend(&out, "weights        ", Size(inspection.weight_bytes));
    for (const auto& [dtype, bytes] : inspection.bytes_by_dtype) {
      absl::StrAppend(&out, "  ", dtype, " ", Size(bytes));
    }
    absl::StrAppend(&out, "\n");
    if (tokenizer_ids_ > 0) {
      absl::StrAppend(&out, "tokenizer      ", tokenizer_ids_, " ids\n");
    }
    if (config.layers > 0) PrintMemory(inspection, &out);
    if (!inspection.pinned_digest.empty()) {
      absl::StrAppend(&out, "manifest       pins the weights digest ",
                      inspection.pinned_digest, "\n");
    }
    for (const absl::Status& problem : inspection.problems) {
      absl::StrAppend(&out, "does not load  ", problem.message(), "\n");
    }
    for (const absl::Status& problem : inspection.gpu_problems) {
      absl::StrAppend(&out, "CPU only       ", problem.message(), "\n");
    }
    terminal.out << out;
  }

  void PrintMemory(const Inspection& inspection, std::string* out) const {
    const ModelConfig& config = inspection.config;
    const StepNeeds cpu = CpuStepNeeds(config, Limits());
    const StepNeeds gpu = GpuStepNeeds(config, Limits());
    const bool on_gpu = inspection.gpu_problems.empty();
    absl::StrAppendFormat(
        out, "cache          of %d sequences of %d tokens, with all else:\n",
        sequences_, context_);
    for (const auto& [name, dtype] : kKvDtypes) {
      const int64_t cache = KvBytes(config, dtype, Limits());
      const int64_t loaded = inspection.weight_bytes + cache;
      absl::StrAppendFormat(
          out, "  %-8s     %d bytes a token, %s; CPU %s, GPU %s\n", name,
          KvBytesPerToken(config, dtype), Size(cache), Size(loaded + All(cpu)),
          on_gpu && cuda::SupportsKv(dtype).ok() ? Size(loaded + All(gpu))
                                                 : "none");
    }
    absl::StrAppendFormat(
        out, "on a CPU       a step of %d tokens %s, its logits %s\n",
        step_tokens_, Size(cpu.activations), Size(cpu.logits));
    if (!on_gpu) return;
    absl::StrAppendFormat(out,
                          "on a GPU       a step of %d tokens %s, its logits "
                          "%s, the runtime %s\n",
                          step_tokens_, Size(gpu.activations), Size(gpu.logits),
                          Size(gpu.reserved));
  }

  static nlohmann::ordered_json Strings(
      const std::vector<absl::Status>& problems) {
    nlohmann::ordered_json out = nlohmann::ordered_json::array();
    for (const absl::Status& problem : problems) {
      out.push_back(std::string(problem.message()));
    }
    return out;
  }

  static nlohmann::ordered_json Json(const StepNeeds& step) {
    return {{"activation_bytes", step.activations},
            {"logit_bytes", step.logits},
            {"reserved_bytes", step.reserved}};
  }

  nlohmann::ordered_json Json(const Inspection& inspection) const {
    const ModelConfig& config = inspection.config;
    const bool loads = inspection.problems.empty();
    const bool on_gpu = loads && inspection.gpu_problems.empty();
    const StepNeeds cpu = CpuStepNeeds(config, Limits());
    const StepNeeds gpu = GpuStepNeeds(config, Limits());
    nlohmann::ordered_json cache = nlohmann::ordered_json::object();
    for (const auto& [name, dtype] : kKvDtypes) {
      const int64_t bytes = KvBytes(config, dtype, Limits());
      const int64_t loaded = inspection.weight_bytes + bytes;
      cache[name] = {{"bytes_per_token", KvBytesPerToken(config, dtype)},
                     {"bytes", bytes},
                     {"cpu_bytes_in_all", loaded + All(cpu)}};
      if (on_gpu && cuda::SupportsKv(dtype).ok()) {
        cache[name]["gpu_bytes_in_all"] = loaded + All(gpu);
      }
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
            {"tokenizer_ids", tokenizer_ids_},
            {"kv_cache", cache},
            {"cpu_step", Json(cpu)},
            {"gpu_step", Json(gpu)},
            {"pinned_weights_digest", inspection.pinned_digest},
            {"loads", loads},
            {"problems", Strings(inspection.problems)},
            {"loads_on_gpu", on_gpu},
            {"gpu_problems", Strings(inspection.gpu_problems)}};
  }

  int32_t context_ = 4096;
  int32_t sequences_ = 16;
  int32_t step_tokens_ = 512;
  int64_t tokenizer_ids_ = 0;  // 0: it does not load
  bool json_ = false;
  bool write_manifest_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeInspectCommand() {
  return std::make_unique<InspectCommand>();
}

}  // namespace invar
