#include "tests/contract/checkpoint.h"

#include <vector>

#include "absl/strings/match.h"
#include "worker/model/testing/random_checkpoint.h"

namespace invar::contract {
namespace {

constexpr uint64_t kWeightsSeed = 20;

}  // namespace

ModelConfig ContractModelConfig(Weights weights) {
  ModelConfig config = testing::TinyModelConfig();
  config.vocab_size = 200;
  config.hidden_size = 64;
  config.max_position_embeddings = 2 * kPositions;
  config.heads = 5;
  config.kv_lora_rank = 64;
  config.qk_nope_head_dim = 32;
  config.qk_rope_head_dim = 16;
  config.v_head_dim = 32;
  config.intermediate_size = 272;
  config.moe_intermediate_size = 80;
  config.router.experts = 16;
  config.router.top_k = 3;
  config.rope_scaling = {.factor = 8,
                         .original_max_positions = 512,
                         .mscale = 0.707,
                         .mscale_all_dim = 0.707};
  if (weights == Weights::kFp8) {
    config.quantization = testing::StaticFp8();
  }
  return config;
}

absl::Status WriteContractCheckpoint(const std::string& folder,
                                     const ModelConfig& config) {
  std::vector<testing::RawTensor> tensors =
      testing::RandomTensors(config, kWeightsSeed);
  for (testing::RawTensor& tensor : tensors) {
    if (!absl::EndsWith(tensor.name, "mlp.gate.weight")) continue;
    const size_t half = tensor.bytes.size() / 2;
    tensor.bytes.replace(half, half, tensor.bytes, 0, half);
  }
  return testing::WriteCheckpoint(folder, config, tensors);
}

}  // namespace invar::contract
