// ((shared + w_0 slots_0) + w_1 slots_1) + ...: shared experts first, then the
// slots by rank, each step one fused multiply-add, as on the CPU.
#ifndef INVAR_KERNELS_CUDA_COMBINE_H_
#define INVAR_KERNELS_CUDA_COMBINE_H_

#include "kernels/cuda/ops_linear.h"

namespace invar::cuda {

__device__ inline float Combined(const Addend& a, int64_t token, int64_t size,
                                 int64_t k) {
  float sum = a.shared[token * size + k];
  if (a.slots == nullptr) return sum;
  for (int64_t rank = 0; rank < a.top_k; ++rank) {
    const int64_t slot = token * a.top_k + rank;
    sum = fmaf(a.weights[slot], a.slots[slot * size + k], sum);
  }
  return sum;
}

// The same for k = thread, thread + kThreads, ... of a row; 0 past its end.
// Ranks outermost, so that a thread's loads do not wait for each other.
template <int kPerThread, int kThreads>
__device__ inline void CombinedRow(const Addend& a, int64_t token, int size,
                                   float (&sum)[kPerThread]) {
  const auto load = [&](const float* row, int i) {
    const int k = threadIdx.x + i * kThreads;
    return k < size ? row[k] : 0.0f;
  };
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    sum[i] = load(a.shared + token * size, i);
  }
  if (a.slots == nullptr) return;
#pragma unroll 2
  for (int64_t rank = 0; rank < a.top_k; ++rank) {
    const int64_t slot = token * a.top_k + rank;
    const float weight = a.weights[slot];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      sum[i] = fmaf(weight, load(a.slots + slot * size, i), sum[i]);
    }
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_COMBINE_H_
