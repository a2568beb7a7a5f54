#include "worker/model/model.h"

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/ops.h"
#include "worker/model/checkpoint/architecture.h"
#include "worker/model/checkpoint/checkpoint.h"
#include "worker/model/deepseek_v2.h"
#include "worker/model/weights.h"

namespace invar {

absl::StatusOr<CheckedModel> LoadChecked(const std::string& folder) {
  const std::string config_path = std::filesystem::path(folder) / "config.json";
  absl::StatusOr<std::string> text = ReadTextFile(config_path);
  if (!text.ok()) return text.status();
  absl::StatusOr<ModelConfig> config = ParseModelConfig(*text, config_path);
  if (!config.ok()) return config.status();
  absl::StatusOr<Checkpoint> checkpoint =
      Checkpoint::Load(folder, ArchitectureTensors(*config));
  if (!checkpoint.ok()) return checkpoint.status();
  return CheckedModel{*std::move(config), *std::move(checkpoint)};
}

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const LoadOptions& options) {
  if (const std::string missing = cpu::MissingCpuFeatures(); !missing.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("this processor has no ", missing,
                     "; the CPU backend needs an x86-64-v3 processor"));
  }
  absl::StatusOr<CheckedModel> model = LoadChecked(options.path);
  if (!model.ok()) return model.status();
  return std::make_unique<DeepseekV2>(
      std::move(model->config), std::move(model->checkpoint), options.kv_dtype,
      options.threads, options.isa);
}

}  // namespace invar
