// What a DeepseekV2 is made of: weights from the checkpoint, tables from the
// config, and its NumericsPlan.
#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "worker/model/deepseek_v2.h"

namespace invar {
namespace {

WeightDtype ToWeightDtype(TensorDtype dtype) {
  switch (dtype) {
    case TensorDtype::kBf16:
      return WeightDtype::kBf16;
    case TensorDtype::kF16:
      return WeightDtype::kFp16;
    case TensorDtype::kF8E4m3:
      return WeightDtype::kFp8E4m3;
    default:  // the checkpoint lets no other pass
      return WeightDtype::kFp32;
  }
}

Weight ToWeight(const LoadedTensor& tensor) {
  return {.dtype = ToWeightDtype(tensor.dtype),
          .data = tensor.data.get(),
          .rows = tensor.shape[0],
          .columns = tensor.shape[1]};
}

const float* Scales(const LoadedTensor& tensor) {
  return reinterpret_cast<const float*>(tensor.data.get());
}

const char* KvDtypeName(KvDtype dtype) {
  switch (dtype) {
    case KvDtype::kFp8E5m2:
      return "FP8_E5M2";
    case KvDtype::kFp8E4m3:
      return "FP8_E4M3";
    case KvDtype::kBf16:
      return "BF16";
    case KvDtype::kFp32:
      return "FP32";
  }
  return "";
}

}  // namespace

Weight DeepseekV2::LoadWeight(const std::string& module) const {
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
  switch (quantization.inputs) {
    case InputScaling::kNone:
      break;
    case InputScaling::kTensor:
      weight.input_scale =
          Scales(checkpoint_.tensor(module + ".input_scale"))[0];
      break;
    case InputScaling::kToken:
      weight.dynamic_inputs = DynamicInputs::kToken;
      break;
    case InputScaling::kGroup:
      weight.dynamic_inputs = DynamicInputs::kGroup;
      break;
  }
  return weight;
}

std::vector<float> DeepseekV2::LoadVector(const std::string& name) const {
  const LoadedTensor& tensor = checkpoint_.tensor(name);
  // Whole lanes: a loaded tensor's memory reaches to their end.
  const int64_t padded = (tensor.shape[0] + kLanes - 1) / kLanes * kLanes;
  std::vector<float> values(padded);
  const std::array<int32_t, 1> first_row = {0};
  const Weight row = {.dtype = ToWeightDtype(tensor.dtype),
                      .data = tensor.data.get(),
                      .rows = 1,
                      .columns = padded};
  cpu::Embedding(row, first_row, values.data());
  values.resize(tensor.shape[0]);
  return values;
}

DeepseekV2::Mlp DeepseekV2::LoadMlp(const std::string& module) const {
  return {LoadWeight(module + ".gate_proj"), LoadWeight(module + ".up_proj"),
          LoadWeight(module + ".down_proj")};
}

void DeepseekV2::LoadExperts(const std::string& mlp, Layer& layer) const {
  layer.router = ToWeight(checkpoint_.tensor(mlp + ".gate.weight"));
  if (config_.architecture == Architecture::kDeepseekV3) {
    layer.correction = LoadVector(mlp + ".gate.e_score_correction_bias");
  }
  // One scale for the inputs of all experts: the largest, since an expert that
  // calibration never reached has a placeholder that would saturate.
  float input_scale = 0.0f;
  float inner_scale = 0.0f;
  for (int64_t e = 0; e < config_.router.experts; ++e) {
    const Mlp expert = LoadMlp(absl::StrCat(mlp, ".experts.", e));
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

DeepseekV2::Layer DeepseekV2::LoadLayer(int64_t index) const {
  const std::string module = absl::StrCat("model.layers.", index);
  const std::string attention = module + ".self_attn";
  const std::string mlp = module + ".mlp";
  Layer layer;
  layer.input_norm = LoadVector(module + ".input_layernorm.weight");
  if (config_.q_lora_rank == 0) {
    layer.q = LoadWeight(attention + ".q_proj");
  } else {
    layer.q_a = LoadWeight(attention + ".q_a_proj");
    layer.q_norm = LoadVector(attention + ".q_a_layernorm.weight");
    layer.q_b = LoadWeight(attention + ".q_b_proj");
  }
  layer.kv_a = LoadWeight(attention + ".kv_a_proj_with_mqa");
  layer.latent_norm = LoadVector(attention + ".kv_a_layernorm.weight");
  layer.kv_b = {.weight = LoadWeight(attention + ".kv_b_proj"),
                .heads = config_.heads,
                .nope = config_.qk_nope_head_dim,
                .rope = config_.qk_rope_head_dim,
                .value = config_.v_head_dim};
  // Scales are made for FP8 codes; other caches hold the values themselves.
  if (config_.quantization.kv_scales && KvElementBytes(kv_dtype_) == 1) {
    layer.kv_scale = Scales(checkpoint_.tensor(attention + ".k_scale"))[0];
    layer.kv_b.latent_scale = layer.kv_scale;
  }
  layer.o = LoadWeight(attention + ".o_proj");
  layer.attention_norm =
      LoadVector(module + ".post_attention_layernorm.weight");
  if (index < config_.dense_layers) {
    layer.mlp = LoadMlp(mlp);
  } else {
    layer.mlp = LoadMlp(mlp + ".shared_experts");
    LoadExperts(mlp, layer);
  }
  return layer;
}

DeepseekV2::DeepseekV2(ModelConfig config, Checkpoint checkpoint,
                       KvDtype kv_dtype, int threads, cpu::Isa isa)
    : config_(std::move(config)),
      checkpoint_(std::move(checkpoint)),
      kv_dtype_(kv_dtype),
      rope_(cpu::MakeRopeTable(config_.qk_rope_head_dim, config_.rope_theta,
                               config_.rope_scaling)),
      // The width of the heads that were trained, not of the absorbed form.
      attention_scale_(static_cast<float>(
          rope_.attention_factor /
          std::sqrt(static_cast<double>(config_.qk_head_dim())))),
      embedding_(ToWeight(checkpoint_.tensor("model.embed_tokens.weight"))),
      lm_head_(config_.tie_word_embeddings ? embedding_
                                           : LoadWeight("lm_head")),
      final_norm_(LoadVector("model.norm.weight")),
      pool_(threads, isa) {
  for (int64_t i = 0; i < config_.layers; ++i) {
    layers_.push_back(LoadLayer(i));
  }
}

std::unique_ptr<KvCache> DeepseekV2::NewKvCache(int64_t blocks) const {
  return std::make_unique<KvCache>(kv_dtype_, config_.layers, blocks,
                                   config_.kv_row_elements());
}

std::vector<std::pair<std::string, std::string>> DeepseekV2::NumericsPlan()
    const {
  std::vector<std::pair<std::string, std::string>> plan = {
      {"backend", "cpu"},
      {"intermediates", "fp32"},
      {"linear.lanes", absl::StrCat(kLanes)},
      {"linear.k_order", "ascending in each lane, fused multiply-add, tree"},
      {"linear.split_k", "1"},
      {"linear.row_parallel_leaf", "128*ceil(K/1024)"},
      {"linear.row_parallel_places", absl::StrCat(kMaxLeaves)},
      {"linear.fp8_inputs", Name(config_.quantization.inputs)},
      {"linear.fp8_input_scales_of_experts", "the largest, where static"},
      {"linear.weight_scales", Name(config_.quantization.weights)},
      {"attention.form", "absorbed"},
      {"attention.tile_tokens", absl::StrCat(kAttentionTile)},
      {"attention.split_tokens", absl::StrCat(kAttentionSplit)},
      {"attention.split_merge", "ascending"},
      {"kv.dtype", KvDtypeName(kv_dtype_)},
      {"kv.scale",
       config_.quantization.kv_scales && KvElementBytes(kv_dtype_) == 1
           ? "the checkpoint's, one a layer"
           : "1"},
      {"kv.rounding", "nearest even, saturating"},
      {"router.order", "score descending, expert id ascending"},
      {"experts.combine", "shared first, then by rank, fp32"},
      {"argmax.tie_break", "lowest token id"},
      {"log_prob.sum", "16 lanes over runs of 1024, runs in double"},
      {"sampling.order", "logit descending, token id ascending"},
      {"sampling.weight_bits", "40"},
      {"sampling.generator", "philox4x32-10, key seed, counter position"},
  };
  for (const auto& [name, revision] : cpu::KernelRevisions()) {
    plan.emplace_back("kernel." + std::string(name), std::string(revision));
  }
  return plan;
}

std::string DeepseekV2::kernel_build_id() const {
  std::string text;
  for (const auto& [name, revision] : cpu::KernelRevisions()) {
    text.append(name).append("=").append(revision).append("\n");
  }
  return Sha256Hex(text);
}

}  // namespace invar
