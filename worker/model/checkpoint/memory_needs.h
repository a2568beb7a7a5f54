// The memory that a worker takes to serve a model at given limits, as far as
// its config tells: for whoever plans a deployment without one.
#ifndef INVAR_WORKER_MODEL_CHECKPOINT_MEMORY_NEEDS_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_MEMORY_NEEDS_H_

#include <cstdint>

#include "kernels/types.h"
#include "worker/model/checkpoint/config.h"

namespace invar {

struct ServingLimits {
  int64_t context = 4096;     // tokens of each sequence
  int64_t sequences = 16;     // at the same time
  int64_t step_tokens = 512;  // limits.max_step_tokens
};

// What is taken beside weights and cache.
struct StepNeeds {
  int64_t activations = 0;  // of a step's tokens
  int64_t logits = 0;       // rows of it
  int64_t reserved = 0;     // GpuReservedBytes
};

// Cache bytes of one token in all layers.
int64_t KvBytesPerToken(const ModelConfig& config, KvDtype dtype);

// Of all sequences, in whole blocks: what kv_cache.memory_bytes must be so that
// they need not wait for each other.
int64_t KvBytes(const ModelConfig& config, KvDtype dtype,
                const ServingLimits& limits);

// What a GPU's runtime takes beside all that is allocated in mode
// DETERMINISTIC, not below it: code, stacks, and the graphs of all sizes of
// decode steps.
int64_t GpuReservedBytes(const ModelConfig& config,
                         const ServingLimits& limits);

// The most that the largest step takes. Near what DeepseekV2 and StepMemory
// (worker/model) allocate, and not below it; their tests say how near.
StepNeeds CpuStepNeeds(const ModelConfig& config, const ServingLimits& limits);
StepNeeds GpuStepNeeds(const ModelConfig& config, const ServingLimits& limits);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_MEMORY_NEEDS_H_
