#include "worker/model/checkpoint/gpu_support.h"

#include <map>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/cuda/support.h"
#include "worker/model/checkpoint/weight_dtype.h"

namespace invar {
namespace {

// A matrix as ReadWeights would give it, but for its values: what there is of
// scales is there.
Weight Describe(const ModelConfig& config, absl::string_view module,
                const TensorHeader& header) {
  static constexpr float kSomeScale = 1.0f;
  Weight weight = {.dtype = ToWeightDtype(header.tensor->dtype),
                   .rows = header.spec->shape[0],
                   .columns = header.spec->shape[1]};
  const Quantization& quantization = config.quantization;
  if (!quantization.Covers({module.data(), module.size()})) return weight;
  if (quantization.weights == WeightScaling::kBlock) {
    weight.block_scales = &kSomeScale;
  }
  if (quantization.inputs == InputScaling::kTensor) {
    weight.input_scale = kSomeScale;
  }
  weight.dynamic_inputs = ToDynamicInputs(quantization.inputs);
  return weight;
}

absl::Status CheckMatrix(const ModelConfig& config, absl::string_view module,
                         Weight weight) {
  if (module == "model.embed_tokens" && !config.tie_word_embeddings) {
    return absl::OkStatus();  // of any dtype
  }
  if (absl::EndsWith(module, ".mlp.gate")) {
    // Widened while it is uploaded.
    if (weight.dtype == WeightDtype::kFp16) weight.dtype = WeightDtype::kFp32;
    return cuda::SupportsRouter(config.router, weight, module);
  }
  if (absl::EndsWith(module, ".kv_b_proj")) {
    return cuda::SupportsKvUp(weight, module);
  }
  return cuda::SupportsLinear(weight, module);
}

}  // namespace

StackPlace StackOf(std::string_view name) {
  const absl::string_view module(name.data(), name.size());
  constexpr absl::string_view kExperts = ".experts.";
  std::string parent(module.substr(0, module.rfind('.')));
  int64_t expert = 0;
  if (const size_t at = module.find(kExperts); at != module.npos) {
    const absl::string_view number =
        absl::string_view(parent).substr(at + kExperts.size());
    if (!absl::SimpleAtoi(number, &expert)) return {std::string(module), 0};
    parent.resize(at + kExperts.size() - 1);
  }
  if (absl::EndsWith(module, ".gate_proj")) {
    return {absl::StrCat(parent, ".gate_up_proj"), 2 * expert};
  }
  if (absl::EndsWith(module, ".up_proj")) {
    return {absl::StrCat(parent, ".gate_up_proj"), 2 * expert + 1};
  }
  if (absl::EndsWith(module, ".down_proj")) {
    return {absl::StrCat(parent, ".down_proj"), expert};
  }
  return {std::string(module), 0};
}

std::vector<absl::Status> CheckGpu(const ModelConfig& config,
                                   const std::vector<TensorHeader>& tensors,
                                   size_t limit) {
  std::vector<absl::Status> problems;
  const auto add = [&](const absl::Status& status) {
    if (!status.ok() && problems.size() < limit) problems.push_back(status);
  };
  add(cuda::SupportsAttention(config.kv_lora_rank, config.qk_rope_head_dim,
                              config.qk_nope_head_dim, config.v_head_dim));
  // The first weight of each matrix.
  std::map<std::string, std::pair<absl::string_view, TensorDtype>> first;
  for (const TensorHeader& header : tensors) {
    absl::string_view module = header.spec->name;
    if (header.spec->shape.size() != 2 ||
        !absl::ConsumeSuffix(&module, ".weight")) {
      continue;
    }
    add(CheckMatrix(config, module, Describe(config, module, header)));
    const TensorDtype dtype = header.tensor->dtype;
    const auto [it, added] =
        first.emplace(StackOf({module.data(), module.size()}).stack,
                      std::pair(module, dtype));
    const auto& [other, other_dtype] = it->second;
    if (dtype != other_dtype) {
      add(absl::UnimplementedError(absl::StrCat(
          "on a GPU, ", module, " is ", TensorDtypeName(dtype), " and ", other,
          " is ", TensorDtypeName(other_dtype),
          "; gate and up, and the experts of a layer, must have one dtype: "
          "use --device cpu")));
    }
  }
  return problems;
}

absl::Status CheckWeightsFit(int64_t bytes, int64_t free) {
  if (bytes <= free) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "the weights take ", bytes, " bytes of GPU memory, of which ", free,
      " are free: stop what else uses the GPU, or use a "
      "larger one"));
}

absl::Status StepDoesNotFit(const absl::Status& why) {
  return absl::Status(
      why.code(),
      absl::StrCat(
          why.message(),
          ": lower limits.max_step_tokens or "
          "limits.max_context_tokens, or stop what else uses the GPU"));
}

}  // namespace invar
