// Random checkpoints of any size, made as fast as memory takes them: for
// benchmarks, where a model of a real shape is needed and none can be shipped.
#ifndef INVAR_WORKER_MODEL_TESTING_LARGE_CHECKPOINT_H_
#define INVAR_WORKER_MODEL_TESTING_LARGE_CHECKPOINT_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "worker/model/checkpoint/config.h"

namespace invar::testing {

// DeepSeek-V2-Lite's shape with so many of its 27 layers, in bf16.
ModelConfig V2LiteModelConfig(int64_t layers = 27);

// Writes config.json and shards of about 4 GB. A pure function of config and
// seed; weights are of a size with which activations neither grow nor fade.
absl::Status WriteLargeCheckpoint(const std::string& folder,
                                  const ModelConfig& config, uint64_t seed);

}  // namespace invar::testing

#endif  // INVAR_WORKER_MODEL_TESTING_LARGE_CHECKPOINT_H_
