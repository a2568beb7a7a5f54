#include "tests/contract/model_shelf.h"

#include <stdlib.h>

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "tests/contract/checkpoint.h"

namespace invar::contract {

Checkpoints::~Checkpoints() {
  std::error_code ignored;
  if (!root_.empty()) std::filesystem::remove_all(root_, ignored);
}

absl::Status Checkpoints::Write(const Backend& backend) {
  if (!backend.checkpoints.empty()) {
    given_ = backend.checkpoints;
    return absl::OkStatus();
  }
  std::string root =
      std::filesystem::temp_directory_path() / "contract_matrix_XXXXXX";
  if (mkdtemp(root.data()) == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot make a folder ", root, " for the checkpoints"));
  }
  root_ = root;
  for (const Weights weights : {Weights::kBf16, Weights::kFp8}) {
    ModelConfig config = ContractModelConfig(weights);
    if (backend.resize) backend.resize(config);
    absl::Status status = WriteContractCheckpoint(Folder(weights), config);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

std::string Checkpoints::Folder(Weights weights) const {
  return absl::StrCat(given_.empty() ? root_ : given_,
                      weights == Weights::kFp8 ? "/fp8" : "/bf16");
}

std::unique_ptr<KvCache> SharedModel::NewKvCache(int64_t blocks) const {
  std::unique_ptr<KvCache> cache = model_->NewKvCache(blocks);
  if (soil_seed_.has_value()) {
    backend_->soil(*cache, *soil_seed_);
  }
  return cache;
}

absl::StatusOr<std::shared_ptr<Model>> ModelShelf::Take(const Setting& setting,
                                                        int variant) {
  const auto key = std::make_pair(setting, variant);
  if (const auto found = models_.find(key); found != models_.end()) {
    return found->second;
  }
  absl::StatusOr<std::shared_ptr<Model>> model = LoadAnew(setting, variant);
  if (model.ok()) models_.emplace(key, *model);
  return model;
}

absl::StatusOr<std::shared_ptr<Model>> ModelShelf::LoadAnew(
    const Setting& setting, int variant) const {
  return backend_->variants[variant].load(checkpoints_->Folder(setting.weights),
                                          setting.kv_dtype);
}

}  // namespace invar::contract
