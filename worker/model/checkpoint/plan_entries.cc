#include "worker/model/checkpoint/plan_entries.h"

#include <type_traits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace invar {
namespace {

class Entries {
 public:
  template <typename Value>
  void Add(absl::string_view name, const Value& value) {
    std::string text;
    // As many digits as tell all values apart.
    if constexpr (std::is_same_v<Value, float>) {
      text = absl::StrFormat("%.9g", value);
    } else if constexpr (std::is_same_v<Value, double>) {
      text = absl::StrFormat("%.17g", value);
    } else {
      text = absl::StrCat(value);
    }
    entries_.emplace_back(absl::StrCat("model.", name), std::move(text));
  }

  std::vector<std::pair<std::string, std::string>> Take() {
    return std::move(entries_);
  }

 private:
  std::vector<std::pair<std::string, std::string>> entries_;
};

// In each function below, a field that the struct gets later does not compile
// until it is named: add it to the plan, or say why it moves no bit.

void AddRope(const cpu::YarnScaling& scaling, Entries* entries) {
  const auto& [factor, original_max_positions, beta_fast, beta_slow, mscale,
               mscale_all_dim] = scaling;
  entries->Add("rope_scaling.factor", factor);
  entries->Add("rope_scaling.original_max_position_embeddings",
               original_max_positions);
  entries->Add("rope_scaling.beta_fast", beta_fast);
  entries->Add("rope_scaling.beta_slow", beta_slow);
  entries->Add("rope_scaling.mscale", mscale);
  entries->Add("rope_scaling.mscale_all_dim", mscale_all_dim);
}

void AddRouter(const cpu::RouterOptions& router, Entries* entries) {
  const auto& [scoring, method, experts, top_k, groups, top_groups, normalise,
               scaling_factor] = router;
  entries->Add("scoring_func",
               scoring == cpu::RouterScoring::kSoftmax ? "softmax" : "sigmoid");
  switch (method) {
    case cpu::RouterMethod::kGreedy:
      entries->Add("topk_method", "greedy");
      break;
    case cpu::RouterMethod::kGroupLimitedGreedy:
      entries->Add("topk_method", "group_limited_greedy");
      break;
    case cpu::RouterMethod::kNoauxTc:
      entries->Add("topk_method", "noaux_tc");
      break;
  }
  entries->Add("n_routed_experts", experts);
  entries->Add("num_experts_per_tok", top_k);
  entries->Add("n_group", groups);
  entries->Add("topk_group", top_groups);
  entries->Add("norm_topk_prob", static_cast<int>(normalise));
  entries->Add("routed_scaling_factor", scaling_factor);
}

void AddQuantization(const Quantization& quantization, Entries* entries) {
  // kv_scales: in kv.scale, of the backend's part.
  const auto& [format, weights, inputs, kv_scales, ignored] = quantization;
  entries->Add("quantization.format", Name(format));
  entries->Add("quantization.weights", Name(weights));
  entries->Add("quantization.inputs", Name(inputs));
  entries->Add("quantization.ignored", absl::StrJoin(ignored, ","));
}

}  // namespace

std::vector<std::pair<std::string, std::string>> PlanEntries(
    const ModelConfig& config) {
  // max_position_embeddings: a limit, which moves no bit.
  const auto& [architecture, vocab_size, hidden_size, layers,
               max_position_embeddings, rms_norm_eps, tie_word_embeddings,
               heads, q_lora_rank, kv_lora_rank, qk_nope_head_dim,
               qk_rope_head_dim, v_head_dim, rope_theta, rope_scaling,
               dense_layers, intermediate_size, moe_intermediate_size,
               shared_experts, router, quantization] = config;
  Entries entries;
  entries.Add("architecture", Name(architecture));
  entries.Add("vocab_size", vocab_size);
  entries.Add("hidden_size", hidden_size);
  entries.Add("num_hidden_layers", layers);
  entries.Add("rms_norm_eps", rms_norm_eps);
  entries.Add("tie_word_embeddings", static_cast<int>(tie_word_embeddings));
  entries.Add("num_attention_heads", heads);
  entries.Add("q_lora_rank", q_lora_rank);
  entries.Add("kv_lora_rank", kv_lora_rank);
  entries.Add("qk_nope_head_dim", qk_nope_head_dim);
  entries.Add("qk_rope_head_dim", qk_rope_head_dim);
  entries.Add("v_head_dim", v_head_dim);
  entries.Add("rope_theta", rope_theta);
  AddRope(rope_scaling, &entries);
  entries.Add("first_k_dense_replace", dense_layers);
  entries.Add("intermediate_size", intermediate_size);
  entries.Add("moe_intermediate_size", moe_intermediate_size);
  entries.Add("n_shared_experts", shared_experts);
  AddRouter(router, &entries);
  AddQuantization(quantization, &entries);
  return entries.Take();
}

}  // namespace invar
