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

__device__ inline float4 Added(float4 x, float4 y) {
  return {x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w};
}

// So many ranks are loaded before the first is added.
inline constexpr int kRanksAhead = 8;

// Elements k to k + 3 of a token's sum.
__device__ inline float4 Combined4(const Addend& a, int64_t token, int64_t size,
                                   int64_t k) {
  constexpr int kAhead = kRanksAhead;
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

// What a thread of kThreads needs of a row's sum, of at most kRanks slots: all
// of it is asked for by Load and waited for by the first Sum.
template <int kQuads, int kRanks, int kThreads>
struct AddendRow {
  uint2 shared[kQuads];
  uint2 slot[kRanks + 1][kQuads];  // and one for which there is none
  float weight[kRanks + 1];

  __device__ void Load(const Addend& a, int64_t token, int size) {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int k = RowPlace<kThreads>(i);
      const bool there = k < size;
      shared[i] = there ? LoadFour(a.shared + token * size + k) : uint2{};
#pragma unroll
      for (int r = 0; r < kRanks; ++r) {
        const int64_t at = (token * a.top_k + r) * size + k;
        slot[r][i] = there && r < a.top_k ? LoadFour(a.slots + at) : uint2{};
      }
    }
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      weight[r] = r < a.top_k ? a.weights[token * a.top_k + r] : 0.0f;
    }
  }
  // The thread's i-th four.
  __device__ float4 Sum(const Addend& a, int i) const {
    float4 sum = ToFloat4(shared[i]);
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      if (r < a.top_k) AddFour(weight[r], slot[r][i], sum);
    }
    return sum;
  }
};

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_COMBINE_H_
