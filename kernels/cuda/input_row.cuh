// A whole row as a product's inputs, by one block: the only place where scales
// are made of the values that they divide.
#ifndef INVAR_KERNELS_CUDA_INPUT_ROW_CUH_
#define INVAR_KERNELS_CUDA_INPUT_ROW_CUH_

#include "kernels/cuda/silu_mul.h"

namespace invar::cuda {

// max|x| / 448, or 1 for zeros: kernels/cpu/dot.cc. A NaN may be lost, and
// shows in the codes.
__device__ inline float DynamicScale(float largest) {
  const float scale = largest / 448.0f;
  return scale > 0.0f ? scale : 1.0f;
}

__device__ inline float WarpMax(float x) {
#pragma unroll
  for (int step = 16; step >= 1; step /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, step));
  }
  return x;
}

// Thread j has values j, j + kThreads, ... of row `row`, zeros past `size`. By
// all threads of the block; a maximum has no order, so none shows.
template <int kPerThread, int kThreads>
__device__ void StoreInputRow(InputSink sink, int64_t row, int size,
                              const float (&value)[kPerThread]) {
  constexpr int kWarps = kThreads / 32;
  constexpr int kGroupWarps = kScaleBlock / 32;
  static_assert(kWarps % kGroupWarps == 0);
  __shared__ float largest[kPerThread][kWarps];
  if (sink.dynamic != DynamicInputs::kNone) {
    __syncthreads();  // what an earlier sink left has been read
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const float mine = WarpMax(fabsf(value[i]));
      if (threadIdx.x % 32 == 0) largest[i][threadIdx.x / 32] = mine;
    }
    __syncthreads();
  }
  const int groups = static_cast<int>(ScaleBlocks(size));
  if (sink.dynamic == DynamicInputs::kToken) {
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) all = fmaxf(all, largest[i][w]);
    }
    sink.scale = DynamicScale(all);
    if (threadIdx.x == 0) sink.scales[row] = sink.scale;
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int k = threadIdx.x + i * kThreads;
    if (k >= size) continue;
    if (sink.dynamic == DynamicInputs::kGroup) {
      const int first_warp =
          threadIdx.x / static_cast<int>(kScaleBlock) * kGroupWarps;
      float group = 0.0f;
#pragma unroll
      for (int w = 0; w < kGroupWarps; ++w) {
        group = fmaxf(group, largest[i][first_warp + w]);
      }
      sink.scale = DynamicScale(group);
      if (threadIdx.x % kScaleBlock == 0) {
        sink.scales[row * groups + k / kScaleBlock] = sink.scale;
      }
    }
    StoreInput(sink, row * size + k, value[i]);
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_INPUT_ROW_CUH_
