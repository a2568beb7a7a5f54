// What config.json says about a model.
#ifndef INVAR_WORKER_MODEL_CHECKPOINT_CONFIG_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_CONFIG_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace invar {

enum class Quantization {
  kNone,       // weights in bf16, fp16 or fp32
  kFp8Static,  // AutoFP8: e4m3 weights and inputs, one scale a tensor
};

struct ModelConfig {
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

  Quantization quantization = Quantization::kNone;
  // Modules that are not quantised, as in the file, without "model.".
  std::vector<std::string> ignored_layers;

  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  int64_t kv_row_elements() const { return kv_lora_rank + qk_rope_head_dim; }
};

// Reads the text of a config.json. `file` is for messages. INVALID_ARGUMENT
// names a field that is absent, of another type or out of range;
// UNIMPLEMENTED one that asks for what is not supported.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json,
                                             const std::string& file);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_CONFIG_H_
