// A whole row as a product's inputs, by one block: the only place where scales
// are made of the values that they divide.
#ifndef INVAR_KERNELS_CUDA_INPUT_ROW_CUH_
#define INVAR_KERNELS_CUDA_INPUT_ROW_CUH_

#include <cstring>

#include "kernels/cuda/silu_mul.h"

namespace invar::cuda {

// max|x| / 448, or 1 for zeros: kernels/cpu/dot.cc. At least 2^-100, so that it
// has an inverse. A NaN may be lost, and shows in the codes.
__device__ inline float DynamicScale(float largest) {
  return largest > 0.0f ? fmaxf(largest / 448.0f, 0x1p-100f) : 1.0f;
}

__device__ inline float WarpMax(float x) {
#pragma unroll
  for (int step = 16; step >= 1; step /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, step));
  }
  return x;
}

// Four bf16 as they lie in memory, as fp32.
__device__ inline float4 ToFloat4(uint2 pair) {
  return {__uint_as_float(pair.x << 16), __uint_as_float(pair.x & 0xffff0000u),
          __uint_as_float(pair.y << 16), __uint_as_float(pair.y & 0xffff0000u)};
}

__device__ inline float4 Load4(const float* p) {
  return *reinterpret_cast<const float4*>(p);
}

// Where thread j's i-th four values of a row begin: 4 j + 4 kThreads i. So a
// warp has kScaleBlock neighbours, a group of inputs.
template <int kThreads>
__device__ inline int RowPlace(int i) {
  return 4 * (threadIdx.x + i * kThreads);
}

// sink[at .. at + 4) = x as inputs; `at` is a multiple of four.
__device__ inline void StoreInputs4(const InputSink& sink,
                                    const E4m3Input& to_e4m3, int64_t at,
                                    float4 x) {
  switch (sink.dtype) {
    case WeightDtype::kFp8E4m3:
      static_cast<uint32_t*>(sink.data)[at / 4] =
          to_e4m3.Pair(x.x, x.y) | to_e4m3.Pair(x.z, x.w) << 16;
      return;
    case WeightDtype::kFp32:
      static_cast<float4*>(sink.data)[at / 4] = x;
      return;
    default: {
      const float values[] = {x.x, x.y, x.z, x.w};
      uint64_t four = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint64_t code =
            sink.dtype == WeightDtype::kFp16
                ? __half_as_ushort(__float2half_rn(values[i]))
                : __bfloat16_as_ushort(__float2bfloat16_rn(values[i]));
        four |= code << 16 * i;
      }
      static_cast<uint64_t*>(sink.data)[at / 4] = four;
    }
  }
}

// Row `row` of `size` values, each thread's at RowPlace, zeros past its end. By
// all threads of the block; a maximum has no order, so none shows.
template <int kQuads, int kThreads>
__device__ void StoreInputRow(InputSink sink, int64_t row, int size,
                              const float4 (&value)[kQuads]) {
  static_assert(kScaleBlock == 4 * 32, "a warp has a group");
  float largest[kQuads];
  if (sink.dynamic != DynamicInputs::kNone) {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const float4& v = value[i];
      largest[i] = WarpMax(
          fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
    }
  }
  if (sink.dynamic == DynamicInputs::kToken) {
    __shared__ float warps[kThreads / 32];
    float all = largest[0];
#pragma unroll
    for (int i = 1; i < kQuads; ++i) all = fmaxf(all, largest[i]);
    __syncthreads();  // what an earlier sink left has been read
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = all;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kThreads / 32; ++w) all = fmaxf(all, warps[w]);
    sink.scale = DynamicScale(all);
    if (threadIdx.x == 0) sink.scales[row] = sink.scale;
  }
  const int64_t groups = ScaleBlocks(size);
  E4m3Input to_e4m3(sink.scale);
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const int k = RowPlace<kThreads>(i);
    if (k >= size) continue;
    if (sink.dynamic == DynamicInputs::kGroup) {
      const float scale = DynamicScale(largest[i]);
      to_e4m3 = E4m3Input(scale);
      if (threadIdx.x % 32 == 0) {
        sink.scales[row * groups + k / kScaleBlock] = scale;
      }
    }
    StoreInputs4(sink, to_e4m3, row * size + k, value[i]);
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_INPUT_ROW_CUH_
