// What config.json says about a model.
#ifndef INVAR_WORKER_MODEL_CHECKPOINT_CONFIG_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_CONFIG_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "worker/model/checkpoint/quantization.h"

namespace invar {

inline constexpr char kConfigFile[] = "config.json";

enum class Architecture {
  kDeepseekV2,  // DeepseekV2ForCausalLM
  kDeepseekV3,  // DeepseekV3ForCausalLM: another router, nothing else
};

// The name in config.json.
const char* Name(Architecture architecture);

struct ModelConfig {
  Architecture architecture = Architecture::kDeepseekV2;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t layers = 0;
  int64_t max_position_embeddings = 0;
  float rms_norm_eps = 1e-6f;
  bool tie_word_embeddings = false;

  int64_t heads = 0;
  int64_t q_lora_rank = 0;  // 0: q_proj in one piece
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  double rope_theta = 10000.0;
  cpu::YarnScaling rope_scaling;

  int64_t dense_layers = 0;       // first_k_dense_replace
  int64_t intermediate_size = 0;  // of the dense layers' MLP
  int64_t moe_intermediate_size = 0;
  int64_t shared_experts = 0;  // one MLP of this times moe_intermediate_size
  cpu::RouterOptions router;   // router.experts 0: no MoE layer

  Quantization quantization;

  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  int64_t kv_row_elements() const { return kv_lora_rank + qk_rope_head_dim; }
};

// Reads the text of a config.json. `file` is for messages. INVALID_ARGUMENT
// names a field that is absent, of another type or out of range;
// UNIMPLEMENTED one that asks for what is not supported. The first of
// `problems`, which gets all of them, is what is returned; it may be null.
absl::StatusOr<ModelConfig> ParseModelConfig(
    std::string_view json, const std::string& file,
    std::vector<absl::Status>* problems = nullptr);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_CONFIG_H_
