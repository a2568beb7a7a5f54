// How splits of a sequence become one: in ascending order, wherever it is done.
#ifndef INVAR_KERNELS_CUDA_ATTENTION_MERGE_CUH_
#define INVAR_KERNELS_CUDA_ATTENTION_MERGE_CUH_

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/ops.h"

namespace invar::cuda {

// A split's result of 16 heads: (16, L) weighted sums, then 16 maxima (of
// scores times log2 e) and 16 sums of the weights.
inline constexpr int kPartialHeads = 16;
inline constexpr int kPartialFloats = kPartialHeads * (kLatent + 2);

// A head's splits so far. Add the next one's maximum and sum of weights, then
// Merge each of its weighted sums. The first is taken as it is.
struct MergedSplits {
  float max;
  float sum;
  float old_factor;
  float new_factor;

  __device__ void Add(bool is_first, float split_max, float split_sum) {
    old_factor = 0.0f;
    new_factor = 1.0f;
    if (is_first) {
      max = split_max;
      sum = split_sum;
      return;
    }
    const float new_max = fmaxf(max, split_max);
    old_factor = Exp2(max - new_max);
    new_factor = Exp2(split_max - new_max);
    max = new_max;
    sum = fmaf(split_sum, new_factor, sum * old_factor);
  }
  __device__ float Merge(bool is_first, float split, float total) const {
    return is_first ? split : fmaf(split, new_factor, total * old_factor);
  }
  // What each total is multiplied with at the end.
  __device__ float Inverse() const { return 1.0f / sum; }
};

// Token t's head h of what MlaAttention has left, merged, as a warp's row.
__device__ inline void MergeRow(const AttentionParts& parts, int64_t t, int h,
                                WarpRow<kLatent>& x) {
  constexpr int kMine = kLatent / 64;
  const int lane = threadIdx.x % 32;
  const int splits = parts.cut.Count(parts.positions[t]);
  const int head = h % kPartialHeads;
  const float* part = parts.data + (t * parts.groups + h / kPartialHeads) *
                                       parts.splits * int64_t{kPartialFloats};
  MergedSplits merged;
#pragma unroll 4
  for (int s = 0; s < splits; ++s, part += kPartialFloats) {
    const float* ends = part + kPartialHeads * kLatent;
    const auto* sums =
        reinterpret_cast<const float2*>(part + head * kLatent) + lane;
    merged.Add(s == 0, ends[head], ends[kPartialHeads + head]);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const float2 sum = sums[32 * i];
      x[i] = {merged.Merge(s == 0, sum.x, x[i].x),
              merged.Merge(s == 0, sum.y, x[i].y)};
    }
  }
  const float inverse = merged.Inverse();
#pragma unroll
  for (int i = 0; i < kMine; ++i) x[i] = {x[i].x * inverse, x[i].y * inverse};
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_ATTENTION_MERGE_CUH_
