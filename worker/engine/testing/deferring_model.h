// A model that has two steps in flight, as a GPU does, around one that has not.
#ifndef INVAR_WORKER_ENGINE_TESTING_DEFERRING_MODEL_H_
#define INVAR_WORKER_ENGINE_TESTING_DEFERRING_MODEL_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "worker/model/model.h"

namespace invar {

// Computes nothing before Finish, the latest that Start's contract allows: what
// a caller leaves to chance until then shows in the answers. Aborts on what
// breaks that contract.
class DeferringModel : public Model {
 public:
  explicit DeferringModel(std::shared_ptr<Model> model)
      : model_(std::move(model)) {}

  const ModelConfig& config() const override { return model_->config(); }
  const std::string& weights_digest() const override {
    return model_->weights_digest();
  }
  std::vector<std::pair<std::string, std::string>> NumericsPlan()
      const override {
    return model_->NumericsPlan();
  }
  bool HasFastPlan() const override { return model_->HasFastPlan(); }
  std::string kernel_build_id() const override {
    return model_->kernel_build_id();
  }
  std::string architecture() const override { return model_->architecture(); }
  int64_t MaxKvBlocks() const override { return model_->MaxKvBlocks(); }
  std::unique_ptr<KvCache> NewKvCache(int64_t blocks) const override {
    return model_->NewKvCache(blocks);
  }
  void Prepare(KvCache& cache, int64_t limit) override {
    model_->Prepare(cache, limit);
  }
  std::vector<SliceHealth> Forward(std::span<const SequenceSlice> slices,
                                   KvCache& cache,
                                   std::span<float> logits) override;
  std::vector<SliceHealth> Answer(std::span<const SequenceSlice> slices,
                                  KvCache& cache, int64_t limit,
                                  std::span<const RowRequest> requests,
                                  std::span<RowAnswer> answers) override;

  int64_t StepsInFlight() const override { return 2; }
  void Start(std::span<const SequenceSlice> slices, KvCache& cache,
             int64_t limit, std::span<const RowRequest> requests) override;
  std::vector<SliceHealth> Finish(std::span<RowAnswer> answers) override;

 private:
  struct StartedSlice {
    std::vector<int32_t> token_ids;
    std::vector<int32_t> block_ids;
    SequenceSlice slice;  // of other spans
  };
  struct StartedStep {
    std::vector<StartedSlice> slices;
    KvCache* cache = nullptr;
    int64_t limit = 0;
    std::vector<RowRequest> requests;
    std::vector<std::vector<cpu::TokenUse>> uses;  // of each request
  };

  const std::shared_ptr<Model> model_;
  std::deque<StartedStep> in_flight_;
  // Of the step that was finished last.
  std::vector<int32_t> chosen_;
};

// INVAR_STEPS_AHEAD=1: this process's tests of engines run with steps in flight
// while the next one is planned. ctest runs them both ways.
bool PlansAhead();
// Steps that a command misses, since they have been planned: 1 or 0.
inline int StepsAhead() { return PlansAhead() ? 1 : 0; }
// `model`, or a DeferringModel around it.
std::unique_ptr<Model> ForThisRun(std::unique_ptr<Model> model);

}  // namespace invar

#endif  // INVAR_WORKER_ENGINE_TESTING_DEFERRING_MODEL_H_
