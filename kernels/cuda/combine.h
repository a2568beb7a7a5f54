// ((shared + w_0 slots_0) + w_1 slots_1) + ...: shared experts first, then the
// slots by rank, each step one fused multiply-add, as on the CPU.
#ifndef INVAR_KERNELS_CUDA_COMBINE_H_
#define INVAR_KERNELS_CUDA_COMBINE_H_

#include "kernels/cuda/ops_linear.h"

namespace invar::cuda {

__device__ inline float4 Load4(const float* p) {
  return *reinterpret_cast<const float4*>(p);
}

// Elements k to k + 3 of a token's sum. Eight ranks are loaded before the first
// is added.
__device__ inline float4 Combined4(const Addend& a, int64_t token, int64_t size,
                                   int64_t k) {
  constexpr int kAhead = 8;
  float4 sum = Load4(a.shared + token * size + k);
  if (a.slots == nullptr) return sum;
  for (int64_t first = 0; first < a.top_k; first += kAhead) {
    float4 slot[kAhead];
    float weight[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= a.top_k) break;
      const int64_t at = token * a.top_k + first + i;
      slot[i] = Load4(a.slots + at * size + k);
      weight[i] = a.weights[at];
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= a.top_k) break;
      sum.x = fmaf(weight[i], slot[i].x, sum.x);
      sum.y = fmaf(weight[i], slot[i].y, sum.y);
      sum.z = fmaf(weight[i], slot[i].z, sum.z);
      sum.w = fmaf(weight[i], slot[i].w, sum.w);
    }
  }
  return sum;
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_COMBINE_H_
