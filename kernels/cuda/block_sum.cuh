// A sum over a block of threads in one fixed order.
#ifndef INVAR_KERNELS_CUDA_BLOCK_SUM_CUH_
#define INVAR_KERNELS_CUDA_BLOCK_SUM_CUH_

namespace invar::cuda {

// Lane j + lane j ^ 16, then 8, 4, 2, 1: the same sum in each lane, since
// addition is commutative.
__device__ inline float WarpSum(float x) {
#pragma unroll
  for (int step = 16; step >= 1; step /= 2) {
    x += __shfl_xor_sync(0xffffffff, x, step);
  }
  return x;
}

// Warps' sums, then these in ascending order; each thread has the result. All
// threads of the block call it; again only after a barrier of the caller's.
template <int kThreads>
__device__ inline float BlockSum(float x) {
  static_assert(kThreads % 32 == 0);
  __shared__ float warps[kThreads / 32];
  x = WarpSum(x);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = warps[0];
#pragma unroll
  for (int w = 1; w < kThreads / 32; ++w) sum += warps[w];
  return sum;
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_BLOCK_SUM_CUH_
