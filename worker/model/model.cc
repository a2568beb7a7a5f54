#include "worker/model/model.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/ops.h"
#include "worker/model/checkpoint/architecture.h"
#include "worker/model/checkpoint/checkpoint.h"
#include "worker/model/checkpoint/manifest.h"
#include "worker/model/deepseek_v2.h"
#include "worker/model/weights.h"

namespace invar {

absl::StatusOr<CheckedModel> LoadChecked(const std::string& folder,
                                         const Checkpoint::Options& options,
                                         const MakeTensorStore& make_store) {
  const std::string config_path = std::filesystem::path(folder) / kConfigFile;
  absl::StatusOr<std::string> text = ReadTextFile(config_path);
  if (!text.ok()) return text.status();
  absl::StatusOr<std::optional<Manifest>> manifest = ReadManifest(folder);
  if (!manifest.ok()) return manifest.status();
  Checkpoint::Options checked = options;
  if (manifest->has_value()) {
    checked.manifest = &**manifest;
    absl::Status same = CheckConfig(**manifest, folder, *text);
    if (!same.ok()) return same;
  }
  absl::StatusOr<ModelConfig> config = ParseModelConfig(*text, config_path);
  if (!config.ok()) return config.status();
  if (make_store != nullptr) checked.store = make_store(*config);
  absl::StatusOr<Checkpoint> checkpoint =
      Checkpoint::Load(folder, ArchitectureTensors(*config), checked);
  if (!checkpoint.ok()) return checkpoint.status();
  return CheckedModel{*std::move(config), *std::move(checkpoint)};
}

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const LoadOptions& options) {
  if (const std::string missing = cpu::MissingCpuFeatures(); !missing.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("this processor has no ", missing,
                     "; the CPU backend needs an x86-64-v3 processor"));
  }
  absl::StatusOr<CheckedModel> model =
      LoadChecked(options.path, {.progress = options.progress});
  if (!model.ok()) return model.status();
  return std::make_unique<DeepseekV2>(
      std::move(model->config), std::move(model->checkpoint), options.kv_dtype,
      options.threads, options.isa);
}

std::vector<SliceHealth> Model::Answer(std::span<const SequenceSlice> slices,
                                       KvCache& cache, int64_t limit,
                                       std::span<const RowRequest> requests,
                                       std::span<RowAnswer> answers) {
  const int64_t vocab = config().vocab_size;
  logits_.resize(requests.size() * vocab);
  std::vector<SliceHealth> health = Forward(slices, cache, logits_);
  size_t row = 0;
  for (size_t i = 0; i < slices.size(); ++i) {
    for (int64_t j = 0; j < slices[i].logit_rows; ++j, ++row) {
      if (health[i] != SliceHealth::kFinite) continue;
      answers[row] = AnswerRow(std::span(logits_).subspan(row * vocab, vocab),
                               limit, requests[row]);
    }
  }
  return health;
}

void Model::Start(std::span<const SequenceSlice> slices, KvCache& cache,
                  int64_t limit, std::span<const RowRequest> requests) {
  answers_.assign(requests.size(), RowAnswer());
  health_ = Answer(slices, cache, limit, requests, answers_);
}

std::vector<SliceHealth> Model::Finish(std::span<RowAnswer> answers) {
  std::move(answers_.begin(), answers_.end(), answers.begin());
  return std::move(health_);
}

}  // namespace invar
