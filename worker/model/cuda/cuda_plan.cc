// The identity of the GPU's numerics.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/kernel_digest.h"
#include "worker/model/cuda/cuda_model.h"

namespace invar::cuda {

std::vector<std::pair<std::string, std::string>> CudaModel::NumericsPlan()
    const {
  const bool fp8_cache = KvElementBytes(kv_dtype_) == 1;
  std::vector<std::pair<std::string, std::string>> plan = {
      {"backend", "cuda"},
      {"intermediates", "fp32"},
      {"linear.inputs", "the weight's dtype"},
      {"linear.branch_outputs", "bf16"},
      {"linear.k_order", "one ascending chain of wgmma a leaf"},
      {"linear.fp8_promotion", "128"},
      {"linear.column_parallel_leaf",
       absl::StrCat("K of FP8 but of block scales; 128*ceil(K/1024) up to ",
                    kNarrowRows, " rows, else K")},
      {"linear.row_parallel_leaf", "128*ceil(K/1024)"},
      {"linear.row_parallel_places", absl::StrCat(kMaxLeaves)},
      {"linear.fp8_inputs", Name(config_.quantization.inputs)},
      {"linear.fp8_input_scales_of_gate_and_up", "the larger"},
      {"linear.fp8_input_scales_of_experts", "the largest"},
      {"linear.weight_scales", Name(config_.quantization.weights)},
      {"norm.order", "a row a block, a function of its length"},
      {"rope.angles", "fp32, the CPU's table"},
      {"kv_b.operands",
       "fp16, rows scaled by powers of two; bf16 of bf16 weights"},
      {"kv_b.k_order", "one ascending chain"},
      {"attention.form", "absorbed"},
      {"attention.operands", fp8_cache ? "fp16" : "bf16"},
      {"attention.tile_tokens", absl::StrCat(kAttentionTile)},
      {"attention.split_tokens",
       absl::StrCat(kAttentionSplits.tiles * kAttentionTile)},
      {"attention.split_merge", "ascending, relative to the first's maximum"},
      {"attention.exp", "ex2.approx"},
      {"kv.dtype", Name(kv_dtype_)},
      {"kv.scale", config_.quantization.kv_scales && fp8_cache
                       ? "the checkpoint's, one a layer"
                       : "1"},
      {"kv.rounding", "nearest even, saturating"},
      {"router.sums", "fp32, fixed lanes, butterfly"},
      {"router.order", "score descending, expert id ascending"},
      {"experts.k_order", "one ascending chain"},
      {"swiglu.exp", "ex2.approx, rcp.approx"},
      {"experts.combine", "shared first, then by rank, fp32"},
  };
  AppendRowsPlan(&plan);
  if (const FastMode* fast = Fast()) {
    // In the place of what they change, or at the end.
    for (auto& [name, value] : fast->Entries(plan_)) {
      const auto at =
          std::find_if(plan.begin(), plan.end(),
                       [&](const auto& entry) { return entry.first == name; });
      if (at == plan.end()) {
        plan.emplace_back(name, value);
      } else {
        at->second = value;
      }
    }
  }
  return plan;
}

std::string CudaModel::kernel_build_id() const { return KernelDigest(); }

}  // namespace invar::cuda
