// Planted: a token's experts are added in the order in which they finish, as
// atomic adds do: the order depends on what else is in the step. Here it turns
// with the token's place in it. In the place of kernels/cuda/combine.h.
#ifndef INVAR_KERNELS_CUDA_COMBINE_H_
#define INVAR_KERNELS_CUDA_COMBINE_H_

#include "kernels/cuda/input_row.cuh"
#include "kernels/cuda/ops_linear.h"

namespace invar::cuda {

inline constexpr int kRanksAhead = 8;

__device__ inline float Combined(const Addend& a, int64_t token, int64_t size,
                                 int64_t k) {
  float sum = __bfloat162float(a.shared[token * size + k]);
  if (a.slots == nullptr) return sum;
  for (int64_t i = 0; i < a.top_k; ++i) {
    const int64_t slot = token * a.top_k + (i + token) % a.top_k;
    sum =
        fmaf(a.weights[slot], __bfloat162float(a.slots[slot * size + k]), sum);
  }
  return sum;
}

__device__ inline float4 Combined4(const Addend& a, int64_t token, int64_t size,
                                   int64_t k) {
  return {Combined(a, token, size, k), Combined(a, token, size, k + 1),
          Combined(a, token, size, k + 2), Combined(a, token, size, k + 3)};
}

__device__ inline float4 Added(float4 x, float4 y) {
  return {x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w};
}

template <int kQuads, int kRanks, int kThreads>
struct AddendRow {
  int64_t token;
  int size;

  __device__ void Load(const Addend&, int64_t of_token, int of_size) {
    token = of_token;
    size = of_size;
  }
  __device__ float4 Sum(const Addend& a, int i) const {
    const int k = RowPlace<kThreads>(i);
    return k < size ? Combined4(a, token, size, k) : float4();
  }
};

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_COMBINE_H_
