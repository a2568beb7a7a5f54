// The matrix's checkpoints on disk, and the models loaded from them.
#ifndef INVAR_TESTS_CONTRACT_MODEL_SHELF_H_
#define INVAR_TESTS_CONTRACT_MODEL_SHELF_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/contract/backend.h"
#include "tests/contract/cell.h"
#include "worker/model/model.h"

namespace invar::contract {

// One checkpoint for each Weights: the backend's, or in a folder of its own,
// removed at the end.
class Checkpoints {
 public:
  Checkpoints() = default;
  ~Checkpoints();
  Checkpoints(const Checkpoints&) = delete;
  Checkpoints& operator=(const Checkpoints&) = delete;

  absl::Status Write(const Backend& backend);
  std::string Folder(Weights weights) const;

 private:
  std::string root_;
  std::string given_;
};

// What an engine is given instead of a model: forwards to one that others use
// too, and soils new caches if it has a seed for that.
class SharedModel : public Model {
 public:
  SharedModel(std::shared_ptr<Model> model, const Backend* backend,
              std::optional<uint64_t> soil_seed)
      : model_(std::move(model)), backend_(backend), soil_seed_(soil_seed) {}

  const ModelConfig& config() const override { return model_->config(); }
  const std::string& weights_digest() const override {
    return model_->weights_digest();
  }
  std::vector<std::pair<std::string, std::string>> NumericsPlan()
      const override {
    return model_->NumericsPlan();
  }
  std::string kernel_build_id() const override {
    return model_->kernel_build_id();
  }
  std::string architecture() const override { return model_->architecture(); }
  std::unique_ptr<KvCache> NewKvCache(int64_t blocks) const override;
  std::vector<SliceHealth> Forward(std::span<const SequenceSlice> slices,
                                   KvCache& cache,
                                   std::span<float> logits) override {
    return model_->Forward(slices, cache, logits);
  }
  std::vector<SliceHealth> Answer(std::span<const SequenceSlice> slices,
                                  KvCache& cache, int64_t limit,
                                  std::span<const RowRequest> requests,
                                  std::span<RowAnswer> answers) override {
    return model_->Answer(slices, cache, limit, requests, answers);
  }
  int64_t StepsInFlight() const override { return model_->StepsInFlight(); }
  void Start(std::span<const SequenceSlice> slices, KvCache& cache,
             int64_t limit, std::span<const RowRequest> requests) override {
    model_->Start(slices, cache, limit, requests);
  }
  std::vector<SliceHealth> Finish(std::span<RowAnswer> answers) override {
    return model_->Finish(answers);
  }

 private:
  const std::shared_ptr<Model> model_;
  const Backend* const backend_;
  const std::optional<uint64_t> soil_seed_;
};

// One thread's models, loaded when they are first asked for. Loading a model
// anew gives a restarted worker's.
class ModelShelf {
 public:
  ModelShelf(const Backend* backend, const Checkpoints* checkpoints)
      : backend_(backend), checkpoints_(checkpoints) {}

  absl::StatusOr<std::shared_ptr<Model>> Take(const Setting& setting,
                                              int variant);
  absl::StatusOr<std::shared_ptr<Model>> LoadAnew(const Setting& setting,
                                                  int variant) const;

 private:
  const Backend* const backend_;
  const Checkpoints* const checkpoints_;
  std::map<std::pair<Setting, int>, std::shared_ptr<Model>> models_;
};

}  // namespace invar::contract

#endif  // INVAR_TESTS_CONTRACT_MODEL_SHELF_H_
