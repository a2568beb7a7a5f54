#include "worker/model/checkpoint/architecture.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/types.h"

namespace invar {
namespace {

class TensorTable {
 public:
  explicit TensorTable(const ModelConfig& config) : config_(config) {}

  void Plain(std::string name, std::vector<int64_t> shape) {
    tensors_.push_back({std::move(name), std::move(shape)});
  }

  // module.weight (rows, columns), with its scales if it is quantised.
  void Linear(const std::string& module, int64_t rows, int64_t columns) {
    const Quantization& quantization = config_.quantization;
    if (!quantization.Covers(module)) {
      return Plain(absl::StrCat(module, ".weight"), {rows, columns});
    }
    tensors_.push_back(
        {absl::StrCat(module, ".weight"), {rows, columns}, TensorKind::kFp8});
    switch (quantization.weights) {
      case WeightScaling::kNone:
        break;
      case WeightScaling::kTensor:
        Scale(absl::StrCat(module, ".weight_scale"), {});
        break;
      case WeightScaling::kChannel:
        Scale(absl::StrCat(module, ".weight_scale"), {rows, 1});
        break;
      case WeightScaling::kBlock:
        Scale(absl::StrCat(module, ".weight_scale_inv"),
              {ScaleBlocks(rows), ScaleBlocks(columns)});
        break;
    }
    if (quantization.inputs == InputScaling::kTensor) {
      Scale(absl::StrCat(module, ".input_scale"), {});
    }
  }

  void Scale(std::string name, std::vector<int64_t> shape) {
    tensors_.push_back({std::move(name), std::move(shape), TensorKind::kScale});
  }

  // One scale that no answer depends on.
  void UnusedScale(std::string name) {
    tensors_.push_back(
        {std::move(name), {}, TensorKind::kScale, /*optional=*/true});
  }

  void Mlp(const std::string& module, int64_t inner) {
    Linear(absl::StrCat(module, ".gate_proj"), inner, config_.hidden_size);
    Linear(absl::StrCat(module, ".up_proj"), inner, config_.hidden_size);
    Linear(absl::StrCat(module, ".down_proj"), config_.hidden_size, inner);
  }

  std::vector<TensorSpec> Take() { return std::move(tensors_); }

 private:
  const ModelConfig& config_;
  std::vector<TensorSpec> tensors_;
};

void AddAttention(const ModelConfig& config, const std::string& module,
                  TensorTable& table) {
  const int64_t query_rows = config.heads * config.qk_head_dim();
  if (config.q_lora_rank == 0) {
    table.Linear(absl::StrCat(module, ".q_proj"), query_rows,
                 config.hidden_size);
  } else {
    table.Linear(absl::StrCat(module, ".q_a_proj"), config.q_lora_rank,
                 config.hidden_size);
    table.Plain(absl::StrCat(module, ".q_a_layernorm.weight"),
                {config.q_lora_rank});
    table.Linear(absl::StrCat(module, ".q_b_proj"), query_rows,
                 config.q_lora_rank);
  }
  table.Linear(absl::StrCat(module, ".kv_a_proj_with_mqa"),
               config.kv_row_elements(), config.hidden_size);
  table.Plain(absl::StrCat(module, ".kv_a_layernorm.weight"),
              {config.kv_lora_rank});
  table.Linear(absl::StrCat(module, ".kv_b_proj"),
               config.heads * (config.qk_nope_head_dim + config.v_head_dim),
               config.kv_lora_rank);
  table.Linear(absl::StrCat(module, ".o_proj"), config.hidden_size,
               config.heads * config.v_head_dim);
  if (config.quantization.kv_scales) {
    table.Scale(absl::StrCat(module, ".k_scale"), {});
    // The cached latent is key and value: k_scale is the row's.
    table.UnusedScale(absl::StrCat(module, ".v_scale"));
  }
}

}  // namespace

bool ShapeFits(const TensorSpec& spec, const std::vector<int64_t>& shape) {
  if (shape == spec.shape) return true;
  if (spec.kind != TensorKind::kScale) return false;
  if (spec.shape.empty()) return shape == std::vector<int64_t>{1};
  return spec.shape.size() == 2 && spec.shape[1] == 1 &&
         shape == std::vector<int64_t>{spec.shape[0]};
}

std::vector<TensorSpec> ArchitectureTensors(const ModelConfig& config) {
  TensorTable table(config);
  table.Plain("model.embed_tokens.weight",
              {config.vocab_size, config.hidden_size});
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string layer = absl::StrCat("model.layers.", i);
    table.Plain(absl::StrCat(layer, ".input_layernorm.weight"),
                {config.hidden_size});
    AddAttention(config, absl::StrCat(layer, ".self_attn"), table);
    table.Plain(absl::StrCat(layer, ".post_attention_layernorm.weight"),
                {config.hidden_size});
    const std::string mlp = absl::StrCat(layer, ".mlp");
    if (i < config.dense_layers) {
      table.Mlp(mlp, config.intermediate_size);
      continue;
    }
    table.Plain(absl::StrCat(mlp, ".gate.weight"),
                {config.router.experts, config.hidden_size});
    if (config.architecture == Architecture::kDeepseekV3) {
      table.Plain(absl::StrCat(mlp, ".gate.e_score_correction_bias"),
                  {config.router.experts});
    }
    for (int64_t e = 0; e < config.router.experts; ++e) {
      table.Mlp(absl::StrCat(mlp, ".experts.", e),
                config.moe_intermediate_size);
    }
    table.Mlp(absl::StrCat(mlp, ".shared_experts"),
              config.shared_experts * config.moe_intermediate_size);
  }
  table.Plain("model.norm.weight", {config.hidden_size});
  if (!config.tie_word_embeddings) {
    table.Linear("lm_head", config.vocab_size, config.hidden_size);
  }
  return table.Take();
}

}  // namespace invar
