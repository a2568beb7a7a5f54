#include "worker/model/checkpoint/config.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/types.h"

namespace invar {
namespace {

using nlohmann::json;

// Reads fields of one JSON object and keeps the first thing that was wrong, so
// that a table of reads stays a table.
class Fields {
 public:
  Fields(const json& object, std::string prefix, const std::string& file)
      : object_(object), prefix_(std::move(prefix)), file_(file) {}

  const absl::Status& status() const { return status_; }

  bool Has(const char* name) const {
    const auto it = object_.find(name);
    return it != object_.end() && !it->is_null();
  }

  void Fail(absl::StatusCode code, const std::string& name,
            const std::string& what) {
    if (!status_.ok()) return;
    status_ =
        absl::Status(code, absl::StrCat(file_, ": ", prefix_, name, " ", what));
  }

  int64_t Integer(const char* name, int64_t low, int64_t high,
                  std::optional<int64_t> absent = std::nullopt) {
    if (!Has(name)) {
      if (absent.has_value()) return *absent;
      Fail(absl::StatusCode::kInvalidArgument, name, "is missing");
      return low;
    }
    const json& value = object_[name];
    if (!value.is_number_integer() ||
        (value.is_number_unsigned() &&
         value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) ||
        value.get<int64_t>() < low || value.get<int64_t>() > high) {
      Fail(absl::StatusCode::kInvalidArgument, name,
           absl::StrCat("is ", value.dump(), ", must be an integer in [", low,
                        ", ", high, "]"));
      return low;
    }
    return value.get<int64_t>();
  }

  // A size that is summed over in lanes.
  int64_t LaneMultiple(const char* name, int64_t high) {
    const int64_t size = Integer(name, 1, high);
    if (size % kLanes != 0) {
      Fail(absl::StatusCode::kUnimplemented, name,
           absl::StrCat("is ", size, ", only multiples of ", kLanes,
                        " are supported"));
    }
    return size;
  }

  double Number(const char* name, double low, double high,
                std::optional<double> absent = std::nullopt) {
    if (!Has(name)) {
      if (absent.has_value()) return *absent;
      Fail(absl::StatusCode::kInvalidArgument, name, "is missing");
      return low;
    }
    const json& value = object_[name];
    if (!value.is_number() || !(value.get<double>() >= low) ||
        !(value.get<double>() <= high)) {
      Fail(absl::StatusCode::kInvalidArgument, name,
           absl::StrCat("is ", value.dump(), ", must be a number in [", low,
                        ", ", high, "]"));
      return low;
    }
    return value.get<double>();
  }

  bool Boolean(const char* name, bool absent) {
    if (!Has(name)) return absent;
    const json& value = object_[name];
    if (!value.is_boolean()) {
      Fail(absl::StatusCode::kInvalidArgument, name,
           absl::StrCat("is ", value.dump(), ", must be true or false"));
      return absent;
    }
    return value.get<bool>();
  }

  std::string String(const char* name, const std::string& absent) {
    if (!Has(name)) return absent;
    const json& value = object_[name];
    if (!value.is_string()) {
      Fail(absl::StatusCode::kInvalidArgument, name,
           absl::StrCat("is ", value.dump(), ", must be a string"));
      return absent;
    }
    return value.get<std::string>();
  }

  // The field may only be absent or equal to what is supported.
  void Only(const char* name, const json& supported) {
    if (!Has(name) || object_[name] == supported) return;
    Fail(absl::StatusCode::kUnimplemented, name,
         absl::StrCat("is ", object_[name].dump(), ", only ", supported.dump(),
                      " is supported"));
  }

  // The object under `name`, or an empty one.
  json Object(const char* name) {
    if (!Has(name)) return json::object();
    if (!object_[name].is_object()) {
      Fail(absl::StatusCode::kInvalidArgument, name, "must be an object");
      return json::object();
    }
    return object_[name];
  }

 private:
  const json& object_;
  std::string prefix_;
  const std::string& file_;
  absl::Status status_;
};

constexpr int64_t kMaxSize = int64_t{1} << 20;

absl::Status ReadSizes(Fields& fields, ModelConfig& config) {
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
  return fields.status();
}

absl::Status ReadExperts(Fields& fields, ModelConfig& config) {
  cpu::RouterOptions& router = config.router;
  config.dense_layers =
      fields.Integer("first_k_dense_replace", 0, config.layers, 0);
  if (config.dense_layers > 0) {
    config.intermediate_size =
        fields.LaneMultiple("intermediate_size", kMaxSize);
  }
  if (config.dense_layers == config.layers) return fields.status();
  config.moe_intermediate_size =
      fields.LaneMultiple("moe_intermediate_size", kMaxSize);
  config.shared_experts = fields.Integer("n_shared_experts", 1, 1024);
  router.experts = fields.Integer("n_routed_experts", 1, 1024);
  router.top_k = fields.Integer("num_experts_per_tok", 1, router.experts);
  router.scaling_factor =
      static_cast<float>(fields.Number("routed_scaling_factor", 0, 1e6, 1.0));
  fields.Only("moe_layer_freq", 1);
  fields.Only("scoring_func", "softmax");
  fields.Only("norm_topk_prob", false);
  const std::string method = fields.String("topk_method", "greedy");
  if (method == "group_limited_greedy") {
    router.method = cpu::RouterMethod::kGroupLimitedGreedy;
    router.groups = fields.Integer("n_group", 1, router.experts);
    router.top_groups = fields.Integer("topk_group", 1, router.groups);
    if (router.experts % router.groups != 0) {
      fields.Fail(absl::StatusCode::kInvalidArgument, "n_group",
                  absl::StrCat("is ", router.groups, ", does not divide the ",
                               router.experts, " routed experts"));
    } else if (router.top_k >
               router.experts / router.groups * router.top_groups) {
      fields.Fail(absl::StatusCode::kInvalidArgument, "topk_group",
                  "leaves fewer experts than num_experts_per_tok");
    }
  } else if (method != "greedy") {
    fields.Fail(absl::StatusCode::kUnimplemented, "topk_method",
                absl::StrCat("is \"", method,
                             "\", only \"greedy\" and "
                             "\"group_limited_greedy\" are supported"));
  }
  return fields.status();
}

// rope_scaling with rope_theta beside it, or rope_parameters with it inside.
absl::Status ReadRope(Fields& fields, const std::string& file,
                      ModelConfig& config) {
  const char* name =
      fields.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const json object = fields.Object(name);
  Fields rope(object, absl::StrCat(name, "."), file);
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
    rope.Fail(absl::StatusCode::kUnimplemented, "rope_type",
              absl::StrCat("is \"", type,
                           "\", only \"yarn\" and \"default\" are supported"));
  }
  if (!fields.status().ok()) return fields.status();
  return rope.status();
}

absl::Status ReadQuantization(Fields& fields, const std::string& file,
                              ModelConfig& config) {
  if (fields.Has("compression_config")) {
    fields.Fail(absl::StatusCode::kUnimplemented, "compression_config",
                "(compressed-tensors) is not supported; a bf16 or an AutoFP8 "
                "checkpoint is");
  }
  if (!fields.Has("quantization_config")) return fields.status();
  const json object = fields.Object("quantization_config");
  Fields quantization(object, "quantization_config.", file);
  quantization.Only("quant_method", "fp8");
  quantization.Only("activation_scheme", "static");
  quantization.Only("weight_block_size", nullptr);
  quantization.Only("kv_cache_scheme", nullptr);
  config.quantization = Quantization::kFp8Static;
  for (const char* needed : {"quant_method", "activation_scheme"}) {
    if (!quantization.Has(needed)) {
      quantization.Fail(absl::StatusCode::kInvalidArgument, needed,
                        "is missing");
    }
  }
  if (quantization.Has("ignored_layers")) {
    if (!object["ignored_layers"].is_array()) {
      quantization.Fail(absl::StatusCode::kInvalidArgument, "ignored_layers",
                        "must be a list of names");
    }
    for (const json& layer : object["ignored_layers"]) {
      if (!layer.is_string()) {
        quantization.Fail(absl::StatusCode::kInvalidArgument, "ignored_layers",
                          "must be a list of names");
        break;
      }
      config.ignored_layers.emplace_back(
          absl::StripPrefix(layer.get_ref<const std::string&>(), "model."));
    }
  }
  if (!fields.status().ok()) return fields.status();
  return quantization.status();
}

absl::Status CheckArchitecture(Fields& fields, const json& object) {
  const json architectures =
      fields.Has("architectures") ? object["architectures"] : json::array();
  if (architectures != json::array({"DeepseekV2ForCausalLM"})) {
    fields.Fail(absl::StatusCode::kUnimplemented, "architectures",
                absl::StrCat("is ", architectures.dump(),
                             ", only [\"DeepseekV2ForCausalLM\"] is "
                             "supported"));
  }
  return fields.status();
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view text,
                                             const std::string& file) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": is not a JSON object"));
  }
  Fields fields(object, "", file);
  ModelConfig config;
  if (auto s = CheckArchitecture(fields, object); !s.ok()) return s;
  if (auto s = ReadSizes(fields, config); !s.ok()) return s;
  if (auto s = ReadExperts(fields, config); !s.ok()) return s;
  if (auto s = ReadRope(fields, file, config); !s.ok()) return s;
  if (auto s = ReadQuantization(fields, file, config); !s.ok()) return s;
  return config;
}

}  // namespace invar
