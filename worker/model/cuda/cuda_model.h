// DeepSeek-V2 on one Hopper GPU.
#ifndef INVAR_WORKER_MODEL_CUDA_CUDA_MODEL_H_
#define INVAR_WORKER_MODEL_CUDA_CUDA_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"
#include "worker/model/cuda/device_weights.h"
#include "worker/model/cuda/step_memory.h"
#include "worker/model/model.h"

namespace invar::cuda {

class CudaModel final : public Model {
 public:
  // On device `device` of this machine. Errors are Model::Load's and
  // FAILED_PRECONDITION (no usable GPU), RESOURCE_EXHAUSTED (no memory).
  static absl::StatusOr<std::unique_ptr<Model>> Load(const LoadOptions& options,
                                                     int device);

  const ModelConfig& config() const override { return config_; }
  const std::string& weights_digest() const override { return weights_digest_; }
  std::vector<std::pair<std::string, std::string>> NumericsPlan()
      const override;
  std::string kernel_build_id() const override;
  std::string architecture() const override { return "sm_90"; }
  int64_t MaxKvBlocks() const override;
  std::unique_ptr<KvCache> NewKvCache(int64_t blocks) const override;
  std::vector<SliceHealth> Forward(std::span<const SequenceSlice> slices,
                                   KvCache& cache,
                                   std::span<float> logits) override;
  void Observe(OpObserver observer) override {
    observer_ = std::move(observer);
  }

 private:
  // Part of a step: tokens of `slices` in order, from the one at
  // (slice, token) on, as many as the memory of a step holds.
  struct Pass {
    int64_t tokens = 0;
    int64_t rows = 0;  // of logits
    int64_t max_position = 0;
  };
  struct Cursor {
    size_t slice = 0;
    int64_t token = 0;
  };

  CudaModel(ModelConfig config, std::string weights_digest, KvDtype kv_dtype,
            int device, DeviceWeights weights, StepMemory memory);

  // Stages the next pass's tokens and moves the cursor past them.
  Pass StagePass(std::span<const SequenceSlice> slices, Cursor* cursor);
  // Enqueues the layers over a staged pass.
  void RunLayers(const Pass& pass, KvCache& cache);
  void Attention(const DeviceLayer& layer, const Pass& pass,
                 const KvLayer& cache);
  void FeedForward(const DeviceLayer& layer, const Pass& pass);
  // hidden += what the layer before left to add; its norm as inputs.
  void Norm(const DeviceBuffer<float>& gain, const Pass& pass, float* normed,
            const InputSink& first, const InputSink& second);
  // Enqueues the pass's rows of logits and waits for them.
  void Logits(const Pass& pass, std::span<float> logits);
  void Show(std::string_view op, int64_t rows, int64_t row_size,
            const float* values);

  const ModelConfig config_;
  const std::string weights_digest_;
  const KvDtype kv_dtype_;
  const int device_;
  cpu::RopeTable rope_;
  float attention_scale_;
  Stream stream_;
  LaunchOptions launch_;
  DeviceWeights weights_;
  DeviceBuffer<float> cosines_, sines_;  // (positions, R / 2)
  StepMemory step_;
  // What the last operation leaves for the next norm to add.
  Addend addend_;
  OpObserver observer_;
  int64_t shown_layer_ = -1;
};

}  // namespace invar::cuda

#endif  // INVAR_WORKER_MODEL_CUDA_CUDA_MODEL_H_
