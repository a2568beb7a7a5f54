#include "tests/contract/full_shape_backend.h"

#include <memory>
#include <utility>
#include <vector>

#include "tests/contract/cuda_backend.h"
#include "tests/contract/model_shelf.h"
#include "worker/model/cuda/cuda_model.h"

namespace invar::contract {
namespace {

// A model that others use too, with graphs and overlap or without.
class WithGraphs final : public SharedModel {
 public:
  WithGraphs(std::shared_ptr<cuda::CudaModel> model, const Backend* backend,
             bool graphs)
      : SharedModel(model, backend, std::nullopt),
        model_(std::move(model)),
        graphs_(graphs) {}

  std::vector<SliceHealth> Answer(std::span<const SequenceSlice> slices,
                                  KvCache& cache, int64_t limit,
                                  std::span<const RowRequest> requests,
                                  std::span<RowAnswer> answers) override {
    model_->UseGraphs(graphs_);
    return SharedModel::Answer(slices, cache, limit, requests, answers);
  }
  int64_t StepsInFlight() const override {
    return graphs_ ? SharedModel::StepsInFlight() : 1;
  }
  void Start(std::span<const SequenceSlice> slices, KvCache& cache,
             int64_t limit, std::span<const RowRequest> requests) override {
    model_->UseGraphs(graphs_);
    SharedModel::Start(slices, cache, limit, requests);
  }

 private:
  const std::shared_ptr<cuda::CudaModel> model_;
  const bool graphs_;
};

// The one model of the process.
class Loader {
 public:
  absl::StatusOr<std::shared_ptr<Model>> Load(const std::string& folder,
                                              KvDtype kv_dtype, bool graphs) {
    const auto wanted = std::make_pair(folder, kv_dtype);
    if (model_ != nullptr && loaded_ != wanted) {
      return absl::FailedPreconditionError(
          "a process has memory for one setting of the full shape: choose it "
          "with --match kv=...; and --match weights=...");
    }
    if (model_ == nullptr) {
      auto model = cuda::CudaModel::Load({.path = folder,
                                          .kv_dtype = kv_dtype,
                                          .step_tokens = kCudaStepTokens,
                                          .context_tokens = kLanePositions},
                                         {});
      if (!model.ok()) return model.status();
      model_.reset(static_cast<cuda::CudaModel*>(model->release()));
      loaded_ = wanted;
    }
    return std::make_shared<WithGraphs>(model_, nullptr, graphs);
  }

 private:
  std::shared_ptr<cuda::CudaModel> model_;
  std::pair<std::string, KvDtype> loaded_;
};

}  // namespace

Backend FullShapeBackend(const std::string& folder) {
  Backend backend = CudaBackend();
  backend.name = "cuda, V2-Lite's full shape";
  backend.checkpoints = folder;
  backend.extent.strangers = 12;
  backend.extent.stranger_tokens = 200;
  backend.extent.chunks = {64, 512, 1024};
  backend.extent.texts = false;
  backend.extent.restarts = false;
  backend.variants.clear();
  const auto loader = std::make_shared<Loader>();
  for (const bool graphs : {true, false}) {
    backend.variants.push_back(
        {.name = graphs ? "graphs=on/overlap=on" : "graphs=off/overlap=off",
         .missing = "",
         .load = [loader, graphs](const std::string& path, KvDtype kv_dtype) {
           return loader->Load(path, kv_dtype, graphs);
         }});
  }
  return backend;
}

}  // namespace invar::contract
