#include "worker/model/checkpoint/quantization.h"

#include <algorithm>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "kernels/types.h"
#include "worker/model/checkpoint/json_fields.h"
#include "worker/model/checkpoint/module_pattern.h"

namespace invar {
namespace {

using nlohmann::json;

constexpr absl::string_view kPatternPrefix = "re:";

void ReadIgnored(JsonFields& fields, const char* name, Quantization& out) {
  for (std::string& entry : fields.Strings(name)) {
    if (absl::StartsWith(entry, kPatternPrefix) &&
        !IsModulePattern(entry.substr(kPatternPrefix.size()))) {
      fields.Unsupported(
          name,
          absl::StrCat("has the pattern \"", entry,
                       "\", only names, '.', '.*' and '$' are supported"));
    }
    out.ignored.push_back(std::move(entry));
  }
}

// quant_method fp8: per tensor, or in blocks.
void ReadFp8(JsonFields& fields, Quantization& out) {
  ReadIgnored(fields, "ignored_layers", out);
  ReadIgnored(fields, "modules_to_not_convert", out);
  fields.Only("fmt", "e4m3");
  fields.Only("scale_fmt", nullptr);
  fields.Only("kv_cache_scheme", nullptr);
  if (fields.Has("weight_block_size")) {
    out.format = CheckpointFormat::kBlockFp8;
    out.weights = WeightScaling::kBlock;
    out.inputs = InputScaling::kGroup;
    fields.Only("weight_block_size", json::array({kScaleBlock, kScaleBlock}));
    fields.Exactly("activation_scheme", "dynamic");
    return;
  }
  out.format = CheckpointFormat::kAutoFp8;
  out.weights = WeightScaling::kTensor;
  const std::string scheme = fields.String("activation_scheme", "");
  out.inputs =
      scheme == "dynamic" ? InputScaling::kToken : InputScaling::kTensor;
  if (scheme != "dynamic") fields.Exactly("activation_scheme", "static");
}

// One of a group's {num_bits, type, strategy, dynamic, ...}; `what` is its
// name, "weights".
class Scheme {
 public:
  Scheme(JsonFields& group, const std::string& prefix, const char* what,
         const std::string& file, std::vector<absl::Status>* problems)
      : object_(group.Object(what)),
        fields_(object_, absl::StrCat(prefix, what, "."), file, problems) {
    fields_.Exactly("num_bits", 8);
    fields_.Exactly("type", "float");
    fields_.Only("symmetric", true);
    fields_.Only("actorder", nullptr);
    strategy_ = fields_.String("strategy", "tensor");
    dynamic_ = fields_.Boolean("dynamic", false);
  }

  bool Is(const char* strategy, bool dynamic) const {
    return strategy_ == strategy && dynamic_ == dynamic;
  }
  void Unsupported(const char* supported) {
    fields_.Unsupported(
        "strategy",
        absl::StrCat("is ", dynamic_ ? "dynamic" : "static", " \"", strategy_,
                     "\", only ", supported, " are supported"));
  }

 private:
  const json object_;
  JsonFields fields_;
  std::string strategy_;
  bool dynamic_ = false;
};

void ReadGroup(const json& object, const std::string& prefix,
               const std::string& file, std::vector<absl::Status>* problems,
               Quantization& out) {
  JsonFields group(object, prefix, file, problems);
  group.Exactly("targets", json::array({"Linear"}));
  group.Only("output_activations", nullptr);
  group.Only("format", "float-quantized");
  if (!group.Has("weights")) return group.Invalid("weights", "is missing");
  Scheme weights(group, prefix, "weights", file, problems);
  if (weights.Is("channel", false)) {
    out.weights = WeightScaling::kChannel;
  } else if (!weights.Is("tensor", false)) {
    weights.Unsupported("static \"tensor\" and \"channel\"");
  }
  if (!group.Has("input_activations")) {
    out.inputs = InputScaling::kNone;
    return;
  }
  Scheme inputs(group, prefix, "input_activations", file, problems);
  if (inputs.Is("token", true)) {
    out.inputs = InputScaling::kToken;
  } else if (!inputs.Is("tensor", false)) {
    inputs.Unsupported("static \"tensor\" and dynamic \"token\"");
  }
}

void ReadCompressedTensors(JsonFields& fields, const std::string& prefix,
                           const std::string& file,
                           std::vector<absl::Status>* problems,
                           Quantization& out) {
  out.format = CheckpointFormat::kCompressedTensors;
  out.weights = WeightScaling::kTensor;
  out.inputs = InputScaling::kTensor;
  ReadIgnored(fields, "ignore", out);
  fields.Exactly("format", "float-quantized");
  const json sparsity = fields.Object("sparsity_config");
  JsonFields(sparsity, absl::StrCat(prefix, "sparsity_config."), file, problems)
      .Only("format", "dense");
  const json groups = fields.Object("config_groups");
  if (groups.size() != 1) {
    fields.Unsupported(
        "config_groups",
        absl::StrCat("has ", groups.size(), " groups, only one is supported"));
    return;
  }
  const std::string name = groups.begin().key();
  if (!groups.begin()->is_object()) {
    return fields.Invalid("config_groups", "must hold an object");
  }
  ReadGroup(*groups.begin(), absl::StrCat(prefix, "config_groups.", name, "."),
            file, problems, out);
  if (!fields.Has("kv_cache_scheme")) return;
  out.kv_scales = true;
  Scheme cache(fields, prefix, "kv_cache_scheme", file, problems);
  if (!cache.Is("tensor", false)) cache.Unsupported("static \"tensor\" scales");
}

}  // namespace

bool Quantization::Covers(std::string_view name) const {
  if (weights == WeightScaling::kNone) return false;
  const absl::string_view module(name.data(), name.size());
  // Published block checkpoints keep it in bf16 and do not list it.
  if (format == CheckpointFormat::kBlockFp8 && module == "lm_head") {
    return false;
  }
  const absl::string_view bare = absl::StripPrefix(module, "model.");
  return std::none_of(
      ignored.begin(), ignored.end(), [&](absl::string_view entry) {
        if (absl::ConsumePrefix(&entry, kPatternPrefix)) {
          return ModulePatternMatches({entry.data(), entry.size()}, name);
        }
        absl::ConsumePrefix(&entry, "model.");
        return bare == entry ||
               (absl::StartsWith(bare, entry) && bare[entry.size()] == '.');
      });
}

const char* Name(CheckpointFormat format) {
  switch (format) {
    case CheckpointFormat::kPlain:
      return "unquantised";
    case CheckpointFormat::kAutoFp8:
      return "AutoFP8";
    case CheckpointFormat::kBlockFp8:
      return "block FP8";
    case CheckpointFormat::kCompressedTensors:
      return "compressed-tensors FP8";
  }
  return "";
}

const char* Name(WeightScaling scaling) {
  switch (scaling) {
    case WeightScaling::kNone:
      return "none";
    case WeightScaling::kTensor:
      return "one a tensor";
    case WeightScaling::kChannel:
      return "one a row";
    case WeightScaling::kBlock:
      return "one a block of 128 x 128";
  }
  return "";
}

const char* Name(InputScaling scaling) {
  switch (scaling) {
    case InputScaling::kNone:
      return "none";
    case InputScaling::kTensor:
      return "static, one a tensor";
    case InputScaling::kToken:
      return "dynamic, one a token";
    case InputScaling::kGroup:
      return "dynamic, one a token and group of 128";
  }
  return "";
}

Quantization ReadQuantization(const json& config, const std::string& file,
                              std::vector<absl::Status>* problems) {
  Quantization out;
  JsonFields top(config, "", file, problems);
  const char* name = top.Has("quantization_config") ? "quantization_config"
                                                    : "compression_config";
  if (!top.Has(name)) return out;
  const json object = top.Object(name);
  const std::string prefix = absl::StrCat(name, ".");
  JsonFields fields(object, prefix, file, problems);
  // Older files under compression_config do not say it.
  const std::string method =
      fields.String("quant_method",
                    top.Has("quantization_config") ? "" : "compressed-tensors");
  if (method == "fp8") {
    ReadFp8(fields, out);
  } else if (method == "compressed-tensors") {
    ReadCompressedTensors(fields, prefix, file, problems, out);
  } else if (method.empty()) {
    fields.Invalid("quant_method", "is missing");
  } else {
    fields.Unsupported("quant_method",
                       absl::StrCat("is \"", method,
                                    "\", only \"fp8\" and "
                                    "\"compressed-tensors\" are supported"));
  }
  return out;
}

}  // namespace invar
