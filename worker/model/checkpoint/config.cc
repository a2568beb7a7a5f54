#include "worker/model/checkpoint/config.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/json_text.h"
#include "worker/model/checkpoint/json_fields.h"

namespace invar {
namespace {

using nlohmann::json;

constexpr int64_t kMaxSize = int64_t{1} << 20;

void ReadArchitecture(JsonFields& fields, const json& object,
                      ModelConfig& config) {
  const json names =
      fields.Has("architectures") ? object["architectures"] : json::array();
  for (const Architecture architecture :
       {Architecture::kDeepseekV2, Architecture::kDeepseekV3}) {
    if (names == json::array({Name(architecture)})) {
      config.architecture = architecture;
      return;
    }
  }
  fields.Unsupported("architectures",
                     absl::StrCat("is ", names.dump(),
                                  ", only [\"DeepseekV2ForCausalLM\"] and "
                                  "[\"DeepseekV3ForCausalLM\"] are supported"));
}

void ReadSizes(JsonFields& fields, ModelConfig& config) {
  config.vocab_size = fields.Integer("vocab_size", 1, int64_t{1} << 22);
  config.hidden_size = fields.LaneMultiple("hidden_size", kMaxSize);
  config.layers = fields.Integer("num_hidden_layers", 1, 256);
  config.max_position_embeddings =
      fields.Integer("max_position_embeddings", 1, int64_t{1} << 20);
  config.rms_norm_eps =
      static_cast<float>(fields.Number("rms_norm_eps", 1e-12, 1.0, 1e-6));
  config.tie_word_embeddings = fields.Boolean("tie_word_embeddings", false);
  config.heads = fields.Integer("num_attention_heads", 1, 4096);
  if (fields.Has("q_lora_rank")) {
    config.q_lora_rank = fields.LaneMultiple("q_lora_rank", kMaxSize);
  }
  config.kv_lora_rank = fields.LaneMultiple("kv_lora_rank", kMaxKvLoraRank);
  config.qk_nope_head_dim = fields.LaneMultiple("qk_nope_head_dim", 4096);
  config.qk_rope_head_dim = fields.LaneMultiple("qk_rope_head_dim", 4096);
  config.v_head_dim = fields.LaneMultiple("v_head_dim", 4096);
  fields.Only("hidden_act", "silu");
  fields.Only("attention_bias", false);
  fields.Only("mlp_bias", false);
  fields.Only("rope_interleave", true);
}

// n_group and topk_group; where absent, every expert is in one group.
void ReadGroups(JsonFields& fields, cpu::RouterOptions& router) {
  router.groups = fields.Integer("n_group", 1, router.experts, 1);
  router.top_groups = fields.Integer("topk_group", 1, router.groups, 1);
  if (router.experts % router.groups != 0) {
    fields.Invalid("n_group",
                   absl::StrCat("is ", router.groups, ", does not divide the ",
                                router.experts, " routed experts"));
  } else if (router.top_k >
             router.experts / router.groups * router.top_groups) {
    fields.Invalid("topk_group",
                   "leaves fewer experts than num_experts_per_tok");
  }
}

void ReadRouter(JsonFields& fields, ModelConfig& config) {
  cpu::RouterOptions& router = config.router;
  router.experts = fields.Integer("n_routed_experts", 1, 1024);
  router.top_k = fields.Integer("num_experts_per_tok", 1, router.experts);
  router.scaling_factor =
      static_cast<float>(fields.Number("routed_scaling_factor", 0, 1e6, 1.0));
  fields.Only("moe_layer_freq", 1);
  if (config.architecture == Architecture::kDeepseekV3) {
    fields.Only("scoring_func", "sigmoid");
    fields.Only("topk_method", "noaux_tc");
    router.scoring = cpu::RouterScoring::kSigmoid;
    router.method = cpu::RouterMethod::kNoauxTc;
    router.normalise = fields.Boolean("norm_topk_prob", true);
    return ReadGroups(fields, router);
  }
  fields.Only("scoring_func", "softmax");
  fields.Only("norm_topk_prob", false);
  const std::string method = fields.String("topk_method", "greedy");
  if (method == "group_limited_greedy") {
    router.method = cpu::RouterMethod::kGroupLimitedGreedy;
    ReadGroups(fields, router);
  } else if (method != "greedy") {
    fields.Unsupported("topk_method",
                       absl::StrCat("is \"", method,
                                    "\", only \"greedy\" and "
                                    "\"group_limited_greedy\" are supported"));
  }
}

void ReadExperts(JsonFields& fields, ModelConfig& config) {
  config.dense_layers =
      fields.Integer("first_k_dense_replace", 0, config.layers, 0);
  if (config.dense_layers > 0) {
    config.intermediate_size =
        fields.LaneMultiple("intermediate_size", kMaxSize);
  }
  if (config.dense_layers == config.layers) return;
  config.moe_intermediate_size =
      fields.LaneMultiple("moe_intermediate_size", kMaxSize);
  config.shared_experts = fields.Integer("n_shared_experts", 1, 1024);
  ReadRouter(fields, config);
}

// rope_scaling with rope_theta beside it, or rope_parameters with it inside.
void ReadRope(JsonFields& fields, const std::string& file,
              std::vector<absl::Status>* problems, ModelConfig& config) {
  const char* name =
      fields.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const json object = fields.Object(name);
  JsonFields rope(object, absl::StrCat(name, "."), file, problems);
  const double theta = fields.Number("rope_theta", 1.001, 1e12, 10000.0);
  config.rope_theta = rope.Number("rope_theta", 1.001, 1e12, theta);
  const std::string type =
      rope.String("rope_type", rope.String("type", "default"));
  cpu::YarnScaling& yarn = config.rope_scaling;
  if (type == "yarn") {
    yarn.factor = rope.Number("factor", 1.0, 1e6);
    yarn.original_max_positions = static_cast<double>(
        rope.Integer("original_max_position_embeddings", 1, int64_t{1} << 20));
    yarn.beta_fast = rope.Number("beta_fast", 1e-3, 1e6, 32.0);
    yarn.beta_slow = rope.Number("beta_slow", 1e-3, 1e6, 1.0);
    yarn.mscale = rope.Number("mscale", 0.0, 100.0, 0.0);
    yarn.mscale_all_dim = rope.Number("mscale_all_dim", 0.0, 100.0, 0.0);
    rope.Only("attention_factor", nullptr);
    rope.Only("truncate", true);
  } else if (type != "default") {
    rope.Unsupported("rope_type",
                     absl::StrCat("is \"", type,
                                  "\", only \"yarn\" and \"default\" are "
                                  "supported"));
  }
}

}  // namespace

const char* Name(Architecture architecture) {
  switch (architecture) {
    case Architecture::kDeepseekV2:
      return "DeepseekV2ForCausalLM";
    case Architecture::kDeepseekV3:
      return "DeepseekV3ForCausalLM";
  }
  return "";
}

absl::StatusOr<ModelConfig> ParseModelConfig(
    std::string_view text, const std::string& file,
    std::vector<absl::Status>* all_problems) {
  std::vector<absl::Status> unread;
  std::vector<absl::Status>* problems =
      all_problems != nullptr ? all_problems : &unread;
  problems->clear();
  const absl::StatusOr<json> parsed =
      ParseJson({text.data(), text.size()}, file);
  if (!parsed.ok()) {
    problems->push_back(parsed.status());
    return problems->front();
  }
  const json& object = *parsed;
  if (!object.is_object()) {
    problems->push_back(absl::InvalidArgumentError(
        absl::StrCat(file, ": is not a JSON object")));
    return problems->front();
  }
  JsonFields fields(object, "", file, problems);
  ModelConfig config;
  ReadArchitecture(fields, object, config);
  ReadSizes(fields, config);
  ReadExperts(fields, config);
  ReadRope(fields, file, problems, config);
  config.quantization = ReadQuantization(object, file, problems);
  if (!problems->empty()) return problems->front();
  return config;
}

}  // namespace invar
