// The identity of the CPU's numerics, and what a DeepseekV2 begins with.
#include <new>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "worker/model/deepseek_v2.h"

namespace invar {

DeepseekV2::DeepseekV2(ModelConfig config, Checkpoint checkpoint,
                       KvDtype kv_dtype, int threads, cpu::Isa isa)
    : config_(std::move(config)),
      checkpoint_(std::move(checkpoint)),
      kv_dtype_(kv_dtype),
      rope_(cpu::MakeRopeTable(config_.qk_rope_head_dim, config_.rope_theta,
                               config_.rope_scaling)),
      attention_scale_(AttentionScale(config_, rope_)),
      weights_(ReadWeights(config_, checkpoint_, kv_dtype_)),
      pool_(threads, isa),
      share_steps_(pool_.threads()) {
  step_.pool = &pool_;
}

std::unique_ptr<KvCache> DeepseekV2::NewKvCache(int64_t blocks) const {
  try {
    return std::make_unique<KvCache>(kv_dtype_, config_.layers, blocks,
                                     config_.kv_row_elements());
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
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
      {"kv.dtype", Name(kv_dtype_)},
      {"kv.scale",
       config_.quantization.kv_scales && KvElementBytes(kv_dtype_) == 1
           ? "the checkpoint's, one a layer"
           : "1"},
      {"kv.rounding", "nearest even, saturating"},
      {"router.order", "score descending, expert id ascending"},
      {"experts.combine", "shared first, then by rank, fp32"},
  };
  AppendRowsPlan(&plan);
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
