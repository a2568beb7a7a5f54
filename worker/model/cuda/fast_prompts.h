// Mode FAST's prompts in MHA form: which of a pass take it, and the memory that
// it needs.
#ifndef INVAR_WORKER_MODEL_CUDA_FAST_PROMPTS_H_
#define INVAR_WORKER_MODEL_CUDA_FAST_PROMPTS_H_

#include <cuda_bf16.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/mha_prompt.h"
#include "kernels/cuda/ops.h"
#include "worker/model/checkpoint/config.h"
#include "worker/model/cuda/device_weights.h"
#include "worker/model/cuda/fast_products.h"
#include "worker/model/cuda/lane.h"
#include "worker/model/cuda/step_memory.h"

namespace invar::cuda {

// A pass by the form of its tokens' attention.
struct FastPass {
  struct Run {
    int64_t first = 0;
    int64_t tokens = 0;
  };
  MhaSequences prompts;
  std::vector<Run> rest;  // in absorbed form

  bool has_prompts() const { return prompts.count > 0; }
};

class FastPrompts {
 public:
  // From so many of a chunk's (token, row that it sees) for each cached row on,
  // making keys and values of the rows costs less than it saves.
  static constexpr int64_t kMeetings = 160;

  // RESOURCE_EXHAUSTED: no memory. INTERNAL: the copy engine cannot describe a
  // buffer.
  static absl::StatusOr<std::unique_ptr<FastPrompts>> Make(
      const ModelConfig& config, const DeviceWeights& weights,
      const StepLimits& limits);

  // Of the `tokens` staged in `host`.
  FastPass Divide(const StepMemory::Places& host, int64_t tokens) const;

  // Attends to the pass's prompts, of layer `layer`, into their rows of `out`.
  // q (T, H, N + R) as q_proj leaves it; the cache has the pass's rows.
  void Attend(const FastPass& pass, int64_t layer, const TokenPlaces& places,
              const RopeAngles& angles, const float* q, float scale,
              const KvLayer& cache, const FastProducts& products,
              const InputSink& out, Lane& lane) const;

  // kv_b's product, for FastProducts to measure.
  FastProducts::Others products() const {
    return {kv_b_, &latents_, keys_values_.data(), row_capacity_};
  }

 private:
  FastPrompts() = default;

  int64_t heads_ = 0;
  int64_t row_capacity_ = 0;
  std::vector<DeviceLinear> kv_b_;  // (H * (N + V), L) bf16, of each layer
  std::vector<float> value_scales_;
  InputBuffer latents_;                      // (rows, L) bf16
  DeviceBuffer<__nv_bfloat16> rope_keys_;    // (rows, R)
  DeviceBuffer<__nv_bfloat16> keys_values_;  // (rows, H * (N + V))
  DeviceBuffer<__nv_bfloat16> query_;        // (T, H * (N + R))
  GemmInput rope_keys_input_, keys_values_input_, query_input_;
};

}  // namespace invar::cuda

#endif  // INVAR_WORKER_MODEL_CUDA_FAST_PROMPTS_H_
