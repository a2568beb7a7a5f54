// Checkpoints with random weights, for tests and benchmarks: small models of
// any shape the loader accepts, and files that lie in a chosen way.
#ifndef INVAR_WORKER_MODEL_TESTING_RANDOM_CHECKPOINT_H_
#define INVAR_WORKER_MODEL_TESTING_RANDOM_CHECKPOINT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/model/checkpoint/config.h"

namespace invar::testing {

// Two layers, one dense and one of 8 experts, every size as small as it gets.
ModelConfig TinyModelConfig();

// The embedded model's shape: hidden 384, 6 layers, V2-Lite's MLA widths.
ModelConfig EmbeddedModelConfig();

// AutoFP8 with static scales, lm_head ignored.
Quantization StaticFp8();

// The config.json that ParseModelConfig reads back as `config`.
std::string ConfigJson(const ModelConfig& config);

// One tensor of a safetensors file.
struct RawTensor {
  std::string name;
  std::string dtype;  // "BF16"
  std::vector<int64_t> shape;
  std::string bytes;
};

// A safetensors file of `tensors` in the given order.
std::string SafetensorsBytes(const std::vector<RawTensor>& tensors);

// The tensors of `config` (FP8 where config.quantization says so, bf16
// elsewhere), a pure function of config and seed. Scaled so that activations
// neither grow nor fade.
std::vector<RawTensor> RandomTensors(const ModelConfig& config, uint64_t seed);

// Writes config.json and the tensors into `folder`: one shard as
// model.safetensors, more with an index.
absl::Status WriteCheckpoint(const std::string& folder,
                             const ModelConfig& config,
                             const std::vector<RawTensor>& tensors,
                             int shards = 1);

// RandomTensors, written.
absl::Status WriteRandomCheckpoint(const std::string& folder,
                                   const ModelConfig& config, uint64_t seed,
                                   int shards = 1);

absl::Status WriteFile(const std::string& path, const std::string& bytes);

}  // namespace invar::testing

#endif  // INVAR_WORKER_MODEL_TESTING_RANDOM_CHECKPOINT_H_
