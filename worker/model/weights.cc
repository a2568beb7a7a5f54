#include "worker/model/weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "worker/model/checkpoint/weight_dtype.h"

namespace invar {
namespace {

Weight ToWeight(const LoadedTensor& tensor) {
  return {.dtype = ToWeightDtype(tensor.dtype),
          .data = tensor.data,
          .rows = tensor.shape[0],
          .columns = tensor.shape[1]};
}

const float* Scales(const LoadedTensor& tensor) {
  return reinterpret_cast<const float*>(tensor.data);
}

// Reads modules by their names in the checkpoint.
class Reader {
 public:
  Reader(const ModelConfig& config, const Checkpoint& checkpoint,
         KvDtype kv_dtype)
      : config_(config), checkpoint_(checkpoint), kv_dtype_(kv_dtype) {}

  // MODULE.weight with its scales.
  Weight Linear(const std::string& module) const;
  std::vector<float> Vector(const std::string& name) const;
  MlpWeights Mlp(const std::string& module) const;
  LayerWeights Layer(int64_t index) const;

 private:
  void Experts(const std::string& mlp, LayerWeights& layer) const;

  const ModelConfig& config_;
  const Checkpoint& checkpoint_;
  const KvDtype kv_dtype_;
};

Weight Reader::Linear(const std::string& module) const {
  Weight weight = ToWeight(checkpoint_.tensor(module + ".weight"));
  const Quantization& quantization = config_.quantization;
  if (!quantization.Covers(module)) return weight;
  switch (quantization.weights) {
    case WeightScaling::kNone:
      break;
    case WeightScaling::kTensor:
      weight.scale = Scales(checkpoint_.tensor(module + ".weight_scale"))[0];
      break;
    case WeightScaling::kChannel:
      weight.row_scales = Scales(checkpoint_.tensor(module + ".weight_scale"));
      break;
    case WeightScaling::kBlock:
      weight.block_scales =
          Scales(checkpoint_.tensor(module + ".weight_scale_inv"));
      break;
  }
  if (quantization.inputs == InputScaling::kTensor) {
    weight.input_scale = Scales(checkpoint_.tensor(module + ".input_scale"))[0];
  }
  weight.dynamic_inputs = ToDynamicInputs(quantization.inputs);
  return weight;
}

std::vector<float> Reader::Vector(const std::string& name) const {
  const LoadedTensor& tensor = checkpoint_.tensor(name);
  // Whole lanes: a loaded tensor's memory reaches to their end.
  const int64_t padded = (tensor.shape[0] + kLanes - 1) / kLanes * kLanes;
  std::vector<float> values(padded);
  const std::array<int32_t, 1> first_row = {0};
  const Weight row = {.dtype = ToWeightDtype(tensor.dtype),
                      .data = tensor.data,
                      .rows = 1,
                      .columns = padded};
  cpu::Embedding(row, first_row, values.data());
  values.resize(tensor.shape[0]);
  return values;
}

MlpWeights Reader::Mlp(const std::string& module) const {
  return {Linear(module + ".gate_proj"), Linear(module + ".up_proj"),
          Linear(module + ".down_proj")};
}

void Reader::Experts(const std::string& mlp, LayerWeights& layer) const {
  layer.router = ToWeight(checkpoint_.tensor(mlp + ".gate.weight"));
  if (config_.architecture == Architecture::kDeepseekV3) {
    layer.correction = Vector(mlp + ".gate.e_score_correction_bias");
  }
  // One scale for the inputs of all experts: the largest, since an expert that
  // calibration never reached has a placeholder that would saturate.
  float input_scale = 0.0f;
  float inner_scale = 0.0f;
  for (int64_t e = 0; e < config_.router.experts; ++e) {
    const MlpWeights expert = Mlp(absl::StrCat(mlp, ".experts.", e));
    layer.experts.push_back({expert.gate, expert.up, expert.down});
    input_scale =
        std::max({input_scale, expert.gate.input_scale, expert.up.input_scale});
    inner_scale = std::max(inner_scale, expert.down.input_scale);
  }
  for (cpu::Expert& expert : layer.experts) {
    expert.gate.input_scale = input_scale;
    expert.up.input_scale = input_scale;
    expert.down.input_scale = inner_scale;
  }
}

LayerWeights Reader::Layer(int64_t index) const {
  const std::string module = absl::StrCat("model.layers.", index);
  const std::string attention = module + ".self_attn";
  const std::string mlp = module + ".mlp";
  LayerWeights layer;
  layer.input_norm = Vector(module + ".input_layernorm.weight");
  if (config_.q_lora_rank == 0) {
    layer.q = Linear(attention + ".q_proj");
  } else {
    layer.q_a = Linear(attention + ".q_a_proj");
    layer.q_norm = Vector(attention + ".q_a_layernorm.weight");
    layer.q_b = Linear(attention + ".q_b_proj");
  }
  layer.kv_a = Linear(attention + ".kv_a_proj_with_mqa");
  layer.latent_norm = Vector(attention + ".kv_a_layernorm.weight");
  layer.kv_b = {.weight = Linear(attention + ".kv_b_proj"),
                .heads = config_.heads,
                .nope = config_.qk_nope_head_dim,
                .rope = config_.qk_rope_head_dim,
                .value = config_.v_head_dim};
  // Scales are made for FP8 codes; other caches hold the values themselves.
  if (config_.quantization.kv_scales && KvElementBytes(kv_dtype_) == 1) {
    layer.kv_scale = Scales(checkpoint_.tensor(attention + ".k_scale"))[0];
    layer.kv_b.latent_scale = layer.kv_scale;
  }
  layer.o = Linear(attention + ".o_proj");
  layer.attention_norm = Vector(module + ".post_attention_layernorm.weight");
  if (index < config_.dense_layers) {
    layer.mlp = Mlp(mlp);
  } else {
    layer.mlp = Mlp(mlp + ".shared_experts");
    Experts(mlp, layer);
  }
  return layer;
}

}  // namespace

ModelWeights ReadWeights(const ModelConfig& config,
                         const Checkpoint& checkpoint, KvDtype kv_dtype) {
  const Reader reader(config, checkpoint, kv_dtype);
  ModelWeights weights;
  weights.embedding = ToWeight(checkpoint.tensor("model.embed_tokens.weight"));
  weights.lm_head =
      config.tie_word_embeddings ? weights.embedding : reader.Linear("lm_head");
  weights.final_norm = reader.Vector("model.norm.weight");
  for (int64_t i = 0; i < config.layers; ++i) {
    weights.layers.push_back(reader.Layer(i));
  }
  return weights;
}

float AttentionScale(const ModelConfig& config, const cpu::RopeTable& rope) {
  return static_cast<float>(
      rope.attention_factor /
      std::sqrt(static_cast<double>(config.qk_head_dim())));
}

}  // namespace invar
