// What mode FAST adds to a model: sums whose order may follow the load.
#ifndef INVAR_WORKER_MODEL_CUDA_FAST_MODE_H_
#define INVAR_WORKER_MODEL_CUDA_FAST_MODE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model/checkpoint/config.h"
#include "worker/model/cuda/device_weights.h"
#include "worker/model/cuda/fast_products.h"
#include "worker/model/cuda/fast_prompts.h"
#include "worker/model/cuda/step_memory.h"

namespace invar::cuda {

// How the steps of a model are computed. kFastAbsorbed is FAST but for the MHA
// form of prompts: the absorbed form's price of determinism is told by it.
enum class Plan { kDeterministic, kFastAbsorbed, kFast };

struct FastMode {
  // What cuBLASLt's code takes, beside GpuReservedBytes.
  static constexpr int64_t kReservedBytes = int64_t{160} << 20;

  // Measures; `step` is written to. Errors are those of FastPrompts::Make and
  // FastProducts::Make.
  static absl::StatusOr<std::unique_ptr<FastMode>> Make(
      const ModelConfig& config, const DeviceWeights& weights,
      const StepMemory& step);

  // The NumericsPlan's entries that differ from those of DETERMINISTIC.
  std::vector<std::pair<std::string, std::string>> Entries(Plan plan) const;

  std::unique_ptr<FastProducts> products;
  std::unique_ptr<FastPrompts> prompts;
  DeviceBuffer<float> attention_parts;  // of FastAttentionSplits
};

}  // namespace invar::cuda

#endif  // INVAR_WORKER_MODEL_CUDA_FAST_MODE_H_
