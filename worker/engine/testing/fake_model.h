// A model without arithmetic, for tests of what surrounds one.
#ifndef INVAR_WORKER_ENGINE_TESTING_FAKE_MODEL_H_
#define INVAR_WORKER_ENGINE_TESTING_FAKE_MODEL_H_

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "worker/model/model.h"

namespace invar {

// Logits at a position are a hash of the token ids up to it, which are read
// back from the cache: a wrong block, position or order changes the answer.
class FakeModel : public Model {
 public:
  struct Options {
    int64_t vocab_size = 97;
    int64_t max_position_embeddings = 4096;
    // A sequence that holds this id is not finite from there on.
    int32_t poison_id = -1;
    // What the device has room for.
    int64_t max_kv_blocks = std::numeric_limits<int64_t>::max();
    // No cache is made: another process was quicker.
    bool memory_is_taken = false;
    // Called in each Forward, before anything else.
    std::function<void(std::span<const SequenceSlice>)> on_forward = nullptr;
  };

  explicit FakeModel(Options options);

  const ModelConfig& config() const override { return config_; }
  const std::string& weights_digest() const override { return digest_; }
  std::vector<std::pair<std::string, std::string>> NumericsPlan()
      const override {
    return {{"backend", "fake"}};
  }
  std::string kernel_build_id() const override { return "fake"; }
  std::string architecture() const override { return "fake"; }
  int64_t MaxKvBlocks() const override { return options_.max_kv_blocks; }
  std::unique_ptr<KvCache> NewKvCache(int64_t blocks) const override;
  std::vector<SliceHealth> Forward(std::span<const SequenceSlice> slices,
                                   KvCache& cache,
                                   std::span<float> logits) override;

  // The logits after `token_ids`, without a cache: what Forward must give.
  std::vector<float> Logits(std::span<const int32_t> token_ids) const;

 private:
  Options options_;
  ModelConfig config_;
  std::string digest_ = "fake-weights";
};

}  // namespace invar

#endif  // INVAR_WORKER_ENGINE_TESTING_FAKE_MODEL_H_
