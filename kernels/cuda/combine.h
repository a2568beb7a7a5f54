// ((shared + w_0 slots_0) + w_1 slots_1) + ...: shared experts first, then the
// slots by rank, each step one fused multiply-add, as on the CPU.
#ifndef INVAR_KERNELS_CUDA_COMBINE_H_
#define INVAR_KERNELS_CUDA_COMBINE_H_

#include "kernels/cuda/input_row.cuh"
#include "kernels/cuda/ops_linear.h"

namespace invar::cuda {

// Four as they lie in memory: half the registers till they are added.
__device__ inline uint2 LoadFour(const __nv_bfloat16* p) {
  return *reinterpret_cast<const uint2*>(p);
}
__device__ inline void AddFour(float weight, uint2 four, float4& sum) {
  const float4 x = ToFloat4(four);
  sum.x = fmaf(weight, x.x, sum.x);
  sum.y = fmaf(weight, x.y, sum.y);
  sum.z = fmaf(weight, x.z, sum.z);
  sum.w = fmaf(weight, x.w, sum.w);
}

// Elements k to k + 3 of a token's sum. Eight ranks are loaded before the first
// is added.
__device__ inline float4 Combined4(const Addend& a, int64_t token, int64_t size,
                                   int64_t k) {
  constexpr int kAhead = 8;
  float4 sum = ToFloat4(LoadFour(a.shared + token * size + k));
  if (a.slots == nullptr) return sum;
  for (int64_t first = 0; first < a.top_k; first += kAhead) {
    uint2 slot[kAhead];
    float weight[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= a.top_k) break;
      const int64_t at = token * a.top_k + first + i;
      slot[i] = LoadFour(a.slots + at * size + k);
      weight[i] = a.weights[at];
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= a.top_k) break;
      AddFour(weight[i], slot[i], sum);
    }
  }
  return sum;
}

// The sum's kQuads fours that a thread of kThreads has of a row, at RowPlace,
// zeros past its end: eight ranks of kAtOnce fours are loaded before the first
// is added.
template <int kQuads, int kThreads, int kAtOnce>
__device__ inline void CombinedRow(const Addend& a, int64_t token, int size,
                                   float4 (&sum)[kQuads]) {
  constexpr int kAhead = 8;
  const int top_k = a.slots == nullptr ? 0 : static_cast<int>(a.top_k);
  const auto load = [&](bool there, const __nv_bfloat16* row, int i) {
    const int k = RowPlace<kThreads>(i);
    return there && k < size ? LoadFour(row + k) : uint2{};
  };
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    sum[i] = ToFloat4(load(true, a.shared + token * size, i));
  }
#pragma unroll
  for (int quad = 0; quad < kQuads; quad += kAtOnce) {
    for (int first = 0; first < top_k; first += kAhead) {
      uint2 slot[kAhead][kAtOnce];
      float weight[kAhead];
#pragma unroll
      for (int r = 0; r < kAhead; ++r) {
        const bool there = first + r < top_k;
        const int64_t at = token * top_k + first + r;
        weight[r] = there ? a.weights[at] : 0.0f;
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (quad + i >= kQuads) break;
          slot[r][i] = load(there, a.slots + at * size, quad + i);
        }
      }
#pragma unroll
      for (int r = 0; r < kAhead; ++r) {
        if (first + r >= top_k) break;
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (quad + i >= kQuads) break;
          AddFour(weight[r], slot[r][i], sum[quad + i]);
        }
      }
    }
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_COMBINE_H_
