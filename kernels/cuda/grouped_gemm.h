// What the kernels of the experts' products share.
#ifndef INVAR_KERNELS_CUDA_GROUPED_GEMM_H_
#define INVAR_KERNELS_CUDA_GROUPED_GEMM_H_

#include "kernels/cuda/ops_linear.h"

namespace invar::cuda {

struct ExpertArguments {
  const ExpertWork* work;  // null: one expert, tokens in their own order
  const int32_t* work_count;
  const int32_t* order;
  int top_k;
  bool gathered;  // x has its rows in the order of the groups
  int tokens;
  int k_blocks;
  int rows;  // of gate, of up, or of down
  const float* scales;
  const float* up_scales;
  float scale;
  float up_scale;
  const float* row_scales;    // of all experts' rows, or null
  const float* token_scales;  // (rows of x), or null
  // (experts, gate and up or down, ScaleBlocks(rows), k_blocks)
  const float* block_scales;
  const float* group_scales;  // (rows of x, k_blocks)
  int parts;                  // thread blocks that share an entry of `work`
  bool
      early;  // LaunchOptions': of the plan, or, where there is none, of inputs
  InputSink activated;   // of gate and up
  __nv_bfloat16* slots;  // of down
};

// Tokens of an entry of `work` that WideExperts multiplies at once.
inline constexpr int kWideExpertTile = 128;

// Whether it takes such a product. Its inputs lie in the order of the groups.
bool WideExpertsTake(WeightDtype dtype, const ExpertArguments& arguments,
                     bool gate_up);
void WideExperts(WeightDtype dtype, bool gate_up, const CUtensorMap& weights,
                 const CUtensorMap& x, const ExpertArguments& arguments,
                 int64_t items, const LaunchOptions& options);

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_GROUPED_GEMM_H_
