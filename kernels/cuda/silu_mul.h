// silu(g) = g / (1 + exp(-g)), and how values become a product's inputs.
#ifndef INVAR_KERNELS_CUDA_SILU_MUL_H_
#define INVAR_KERNELS_CUDA_SILU_MUL_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/divisor.cuh"
#include "kernels/cuda/ops_linear.h"

namespace invar::cuda {

// kernels/cpu/exp.h, step for step.
__device__ inline float Exponential(float x) {
  const float n = rintf(x * 0x1.715476p+0f);
  float r = fmaf(-n, 0x1.62e4p-1f, x);
  r = fmaf(-n, 0x1.7f7d1cp-20f, r);
  float sum = 1.0f / 5040.0f;
  sum = fmaf(sum, r, 1.0f / 720.0f);
  sum = fmaf(sum, r, 1.0f / 120.0f);
  sum = fmaf(sum, r, 1.0f / 24.0f);
  sum = fmaf(sum, r, 1.0f / 6.0f);
  sum = fmaf(sum, r, 0.5f);
  sum = fmaf(sum, r, 1.0f);
  sum = fmaf(sum, r, 1.0f);
  if (x < -87.0f) return 0.0f;
  if (x > 88.0f) return __int_as_float(0x7f800000);
  return sum * __int_as_float((static_cast<int>(n) + 127) << 23);
}

// 2^x and 1 / x are the machine's own: errors of some 2^-22, which the rounding
// to an input hides, for a tenth of the instructions.
__device__ inline float SwiGlu(float gate, float up) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(gate * -0x1.715476p+0f));
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
  return gate * inverse * up;
}

// x / scale as e4m3, as StoreInput rounds it. What is too large to be corrected
// stays as it is.
struct E4m3Input {
  Divisor scale;

  __device__ explicit E4m3Input(float scale) : scale(scale) {}
  __device__ float Quotient(float x) const {
    const float nearly = x * scale.inverse;
    const float quotient = scale(x);
    return fabsf(nearly) < 0x1p100f ? quotient : nearly;
  }
  __device__ __nv_fp8_storage_t operator()(float x) const {
    return __nv_cvt_float_to_fp8(Quotient(x), __NV_SATFINITE, __NV_E4M3);
  }
  // Of x the low byte.
  __device__ uint32_t Pair(float x, float y) const {
    return __nv_cvt_float2_to_fp8x2({Quotient(x), Quotient(y)}, __NV_SATFINITE,
                                    __NV_E4M3);
  }
};

// sink[at] = x as an input.
__device__ inline void StoreInput(const InputSink& sink, int64_t at, float x) {
  switch (sink.dtype) {
    case WeightDtype::kFp8E4m3:
      static_cast<__nv_fp8_storage_t*>(sink.data)[at] =
          __nv_cvt_float_to_fp8(x / sink.scale, __NV_SATFINITE, __NV_E4M3);
      return;
    case WeightDtype::kFp16:
      static_cast<__half*>(sink.data)[at] = __float2half_rn(x);
      return;
    case WeightDtype::kBf16:
      static_cast<__nv_bfloat16*>(sink.data)[at] = __float2bfloat16_rn(x);
      return;
    case WeightDtype::kFp32:
      static_cast<float*>(sink.data)[at] = x;
      return;
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_SILU_MUL_H_
