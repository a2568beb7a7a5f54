// How splits of a sequence become one: in ascending order, wherever it is done.
#ifndef INVAR_KERNELS_CUDA_ATTENTION_MERGE_CUH_
#define INVAR_KERNELS_CUDA_ATTENTION_MERGE_CUH_

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/ops.h"

namespace invar::cuda {

// A split's result of 16 heads: (16, L) weighted sums, then 16 references (of
// scores times log2 e) and 16 sums of the weights.
inline constexpr int kPartialHeads = 16;
inline constexpr int kPartialFloats = kPartialHeads * (kLatent + 2);

// A head's splits so far. Add the next one's reference and sum of weights, then
// Merge each of its weighted sums. The first is taken as it is, and all become
// relative to its reference: as long as none is larger by 2^kHeadroom, what has
// been merged is not touched again but for the addition, which memory can do.
struct MergedSplits {
  static constexpr float kHeadroom = 32.0f;

  float reference;
  float sum;
  float old_factor;
  float new_factor;

  __device__ void Add(bool is_first, float split, float split_sum) {
    old_factor = 1.0f;
    new_factor = 1.0f;
    if (is_first) {
      reference = split;
      sum = split_sum;
      return;
    }
    if (split > reference + kHeadroom) {
      old_factor = Exp2(reference - split);
      reference = split;
    } else {
      new_factor = Exp2(split - reference);
    }
    sum = fmaf(split_sum, new_factor, sum * old_factor);
  }
  // What is added to what has been merged, times old_factor.
  __device__ float Share(float split) const { return split * new_factor; }
  __device__ float Merge(bool is_first, float split, float total) const {
    return is_first ? split : AddFlushed(total * old_factor, Share(split));
  }
  // What each total is multiplied with at the end.
  __device__ float Inverse() const { return 1.0f / sum; }

  // As memory adds: subnormal numbers are zeros.
  __device__ static float AddFlushed(float x, float y) {
    float sum;
    asm("add.ftz.f32 %0, %1, %2;" : "=f"(sum) : "f"(x), "f"(y));
    return sum;
  }
};

// *to += x, four additions by memory itself. Those of a thread to one place are
// made in its order.
__device__ inline void AddInMemory(float4* to, const float4& x) {
  asm volatile(
      "red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to),
      "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w)
      : "memory");
}

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
