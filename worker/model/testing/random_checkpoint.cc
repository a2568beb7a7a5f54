#include "worker/model/testing/random_checkpoint.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "worker/model/checkpoint/architecture.h"

namespace invar::testing {
namespace {

using nlohmann::json;

// Uniform in [-1, 1), the same on every platform.
double Uniform(std::mt19937_64& random) {
  return static_cast<double>(random() >> 11) * 0x1p-52 - 1.0;
}

std::string FloatBytes(float value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

std::string Bf16Bytes(int64_t count, double center, double spread,
                      std::mt19937_64& random) {
  std::string bytes;
  for (int64_t i = 0; i < count; ++i) {
    const float value = static_cast<float>(center + spread * Uniform(random));
    bytes += FloatBytes(value).substr(2);
  }
  return bytes;
}

// e4m3 codes of magnitudes up to 15.
std::string Fp8Bytes(int64_t count, std::mt19937_64& random) {
  std::string bytes;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t draw = random();
    const uint64_t magnitude = draw % (11 * 8);
    bytes += static_cast<char>(magnitude | (draw >> 63) << 7);
  }
  return bytes;
}

int64_t Count(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

RawTensor RandomTensor(const TensorSpec& spec, std::mt19937_64& random) {
  const int64_t count = Count(spec.shape);
  switch (spec.kind) {
    case TensorKind::kFp8:
      return {spec.name, "F8_E4M3", spec.shape, Fp8Bytes(count, random)};
    case TensorKind::kScale: {
      // Inputs of magnitude up to 9; weights about 1 / sqrt(a few hundred).
      const bool input = absl::StrContains(spec.name, "input_scale");
      std::string bytes;
      for (int64_t i = 0; i < count; ++i) {
        const double scale = (input ? 0.02 : 0.015) * (1.5 + Uniform(random));
        bytes += FloatBytes(static_cast<float>(scale));
      }
      return {spec.name, "F32", spec.shape, bytes};
    }
    case TensorKind::kFloat:
      break;
  }
  if (spec.shape.size() == 1) {
    return {spec.name, "BF16", spec.shape, Bf16Bytes(count, 1.0, 0.2, random)};
  }
  const bool embedding = absl::StrContains(spec.name, "embed_tokens");
  const double spread =
      embedding ? 1.0 : 2.0 / std::sqrt(static_cast<double>(spec.shape[1]));
  return {spec.name, "BF16", spec.shape, Bf16Bytes(count, 0, spread, random)};
}

json Scheme(const char* strategy, bool dynamic) {
  return {{"num_bits", 8},
          {"type", "float"},
          {"strategy", strategy},
          {"dynamic", dynamic},
          {"symmetric", true}};
}

json QuantizationJson(const Quantization& quantization) {
  switch (quantization.format) {
    case CheckpointFormat::kPlain:
      return nullptr;
    case CheckpointFormat::kAutoFp8:
      return {
          {"quant_method", "fp8"},
          {"activation_scheme",
           quantization.inputs == InputScaling::kTensor ? "static" : "dynamic"},
          {"ignored_layers", quantization.ignored}};
    case CheckpointFormat::kBlockFp8:
      return {{"quant_method", "fp8"},
              {"fmt", "e4m3"},
              {"activation_scheme", "dynamic"},
              {"weight_block_size", {kScaleBlock, kScaleBlock}}};
    case CheckpointFormat::kCompressedTensors:
      break;
  }
  json group = {
      {"targets", {"Linear"}},
      {"weights",
       Scheme(quantization.weights == WeightScaling::kChannel ? "channel"
                                                              : "tensor",
              false)}};
  if (quantization.inputs != InputScaling::kNone) {
    const bool dynamic = quantization.inputs == InputScaling::kToken;
    group["input_activations"] = Scheme(dynamic ? "token" : "tensor", dynamic);
  }
  json config = {{"quant_method", "compressed-tensors"},
                 {"format", "float-quantized"},
                 {"ignore", quantization.ignored},
                 {"config_groups", {{"group_0", group}}}};
  if (quantization.kv_scales) {
    config["kv_cache_scheme"] = Scheme("tensor", false);
  }
  return config;
}

json RopeJson(const cpu::YarnScaling& yarn) {
  return {{"type", "yarn"},
          {"factor", yarn.factor},
          {"original_max_position_embeddings",
           static_cast<int64_t>(yarn.original_max_positions)},
          {"beta_fast", yarn.beta_fast},
          {"beta_slow", yarn.beta_slow},
          {"mscale", yarn.mscale},
          {"mscale_all_dim", yarn.mscale_all_dim}};
}

}  // namespace

ModelConfig TinyModelConfig() {
  ModelConfig config;
  config.vocab_size = 70;
  config.hidden_size = 32;
  config.layers = 2;
  config.max_position_embeddings = 1024;
  config.heads = 3;
  config.kv_lora_rank = 32;
  config.qk_nope_head_dim = 16;
  config.qk_rope_head_dim = 16;
  config.v_head_dim = 16;
  config.dense_layers = 1;
  config.intermediate_size = 48;
  config.moe_intermediate_size = 16;
  config.shared_experts = 2;
  config.router.experts = 8;
  config.router.top_k = 3;
  config.quantization.ignored = {"lm_head"};
  return config;
}

Quantization StaticFp8() {
  return {.format = CheckpointFormat::kAutoFp8,
          .weights = WeightScaling::kTensor,
          .inputs = InputScaling::kTensor,
          .ignored = {"lm_head"}};
}

ModelConfig EmbeddedModelConfig() {
  ModelConfig config;
  config.vocab_size = 4096;
  config.hidden_size = 384;
  config.layers = 6;
  config.max_position_embeddings = 2048;
  config.heads = 4;
  config.kv_lora_rank = 512;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.v_head_dim = 128;
  config.dense_layers = 1;
  config.intermediate_size = 1024;
  config.moe_intermediate_size = 96;
  config.shared_experts = 2;
  config.router.experts = 16;
  config.router.top_k = 4;
  config.quantization = StaticFp8();
  return config;
}

std::string ConfigJson(const ModelConfig& c) {
  json config = {
      {"architectures", {Name(c.architecture)}},
      {"vocab_size", c.vocab_size},
      {"hidden_size", c.hidden_size},
      {"num_hidden_layers", c.layers},
      {"max_position_embeddings", c.max_position_embeddings},
      {"rms_norm_eps", 1e-6},
      {"tie_word_embeddings", c.tie_word_embeddings},
      {"num_attention_heads", c.heads},
      {"kv_lora_rank", c.kv_lora_rank},
      {"qk_nope_head_dim", c.qk_nope_head_dim},
      {"qk_rope_head_dim", c.qk_rope_head_dim},
      {"v_head_dim", c.v_head_dim},
      {"rope_theta", c.rope_theta},
      {"first_k_dense_replace", c.dense_layers},
      {"intermediate_size", c.intermediate_size},
      {"moe_intermediate_size", c.moe_intermediate_size},
      {"n_shared_experts", c.shared_experts},
      {"n_routed_experts", c.router.experts},
      {"num_experts_per_tok", c.router.top_k},
      {"routed_scaling_factor", c.router.scaling_factor},
      {"q_lora_rank", nullptr},
      {"hidden_act", "silu"},
  };
  if (c.q_lora_rank > 0) config["q_lora_rank"] = c.q_lora_rank;
  if (c.architecture == Architecture::kDeepseekV3) {
    config["topk_method"] = "noaux_tc";
    config["scoring_func"] = "sigmoid";
    config["norm_topk_prob"] = c.router.normalise;
    config["n_group"] = c.router.groups;
    config["topk_group"] = c.router.top_groups;
  }
  if (c.router.method == cpu::RouterMethod::kGroupLimitedGreedy) {
    config["topk_method"] = "group_limited_greedy";
    config["n_group"] = c.router.groups;
    config["topk_group"] = c.router.top_groups;
  }
  if (c.rope_scaling.factor > 1.0) {
    config["rope_scaling"] = RopeJson(c.rope_scaling);
  }
  if (c.quantization.format != CheckpointFormat::kPlain) {
    config["quantization_config"] = QuantizationJson(c.quantization);
  }
  return config.dump(2);
}

std::string SafetensorsBytes(const std::vector<RawTensor>& tensors) {
  json header = json::object();
  std::string data;
  for (const RawTensor& tensor : tensors) {
    const size_t begin = data.size();
    data += tensor.bytes;
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {begin, data.size()}}};
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) +
         text + data;
}

std::vector<RawTensor> RandomTensors(const ModelConfig& config, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<RawTensor> tensors;
  for (const TensorSpec& spec : ArchitectureTensors(config)) {
    tensors.push_back(RandomTensor(spec, random));
  }
  return tensors;
}

absl::Status WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file << bytes;
  file.close();
  return file ? absl::OkStatus()
              : absl::UnknownError(absl::StrCat("cannot write ", path));
}

absl::Status WriteCheckpoint(const std::string& folder,
                             const ModelConfig& config,
                             const std::vector<RawTensor>& tensors,
                             int shards) {
  const std::filesystem::path path(folder);
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (auto s = WriteFile(path / "config.json", ConfigJson(config)); !s.ok()) {
    return s;
  }
  if (shards == 1) {
    return WriteFile(path / "model.safetensors", SafetensorsBytes(tensors));
  }
  json weight_map = json::object();
  for (int i = 0; i < shards; ++i) {
    const std::string name =
        absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards);
    std::vector<RawTensor> shard;
    for (size_t k = 0; k < tensors.size(); ++k) {
      if (k * shards / tensors.size() != static_cast<size_t>(i)) continue;
      shard.push_back(tensors[k]);
      weight_map[tensors[k].name] = name;
    }
    if (auto s = WriteFile(path / name, SafetensorsBytes(shard)); !s.ok()) {
      return s;
    }
  }
  return WriteFile(path / "model.safetensors.index.json",
                   json{{"weight_map", weight_map}}.dump());
}

absl::Status WriteRandomCheckpoint(const std::string& folder,
                                   const ModelConfig& config, uint64_t seed,
                                   int shards) {
  return WriteCheckpoint(folder, config, RandomTensors(config, seed), shards);
}

}  // namespace invar::testing
