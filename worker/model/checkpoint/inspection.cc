#include "worker/model/checkpoint/inspection.h"

#include <filesystem>
#include <optional>

#include "absl/strings/match.h"
#include "worker/model/checkpoint/gpu_support.h"
#include "worker/model/checkpoint/manifest.h"
#include "worker/model/checkpoint/shards.h"
#include "worker/model/checkpoint/text_file.h"

namespace invar {

absl::StatusOr<Inspection> Inspect(const std::string& folder) {
  constexpr size_t kMostTensors = 20;
  const std::string path = std::filesystem::path(folder) / kConfigFile;
  absl::StatusOr<std::string> text = ReadTextFile(path);
  if (!text.ok()) return text.status();
  absl::StatusOr<Shards> shards = OpenShards(folder);
  if (!shards.ok()) return shards.status();

  Inspection inspection;
  absl::StatusOr<ModelConfig> config =
      ParseModelConfig(*text, path, &inspection.problems);
  if (config.ok()) {
    inspection.config = *config;
    const std::vector<TensorSpec> expected = ArchitectureTensors(*config);
    inspection.problems = CheckTable(*shards, expected, kMostTensors);
    if (inspection.problems.empty()) {
      inspection.gpu_problems =
          CheckGpu(*config, Headers(*shards, expected), kMostTensors);
    }
  }
  absl::StatusOr<std::optional<Manifest>> manifest = ReadManifest(folder);
  if (!manifest.ok()) {
    inspection.problems.push_back(manifest.status());
  } else if (manifest->has_value()) {
    inspection.pinned_digest = (*manifest)->weights_digest;
    for (const absl::Status& same : {CheckConfig(**manifest, folder, *text),
                                     CheckFiles(**manifest, folder, *shards)}) {
      if (!same.ok()) inspection.problems.push_back(same);
    }
  }
  inspection.files = static_cast<int64_t>(shards->files.size());
  inspection.tensors = static_cast<int64_t>(shards->tensors.size());
  for (const auto& [name, place] : shards->tensors) {
    const Tensor& tensor = *place.tensor;
    inspection.weight_bytes += tensor.bytes;
    inspection.bytes_by_dtype[TensorDtypeName(tensor.dtype)] += tensor.bytes;
    if (!absl::StrContains(name, "_scale")) {
      inspection.parameters += tensor.bytes / TensorElementBytes(tensor.dtype);
    }
  }
  return inspection;
}

}  // namespace invar
