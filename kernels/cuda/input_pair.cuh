// Two neighbouring values as a product's inputs, in one store.
#ifndef INVAR_KERNELS_CUDA_INPUT_PAIR_CUH_
#define INVAR_KERNELS_CUDA_INPUT_PAIR_CUH_

#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/ops_linear.h"

namespace invar::cuda {

// sink[at], sink[at + 1] = x, y as inputs; `at` is even.
__device__ inline void StoreInputPair(const InputSink& sink, int64_t at,
                                      float x, float y) {
  switch (sink.dtype) {
    case WeightDtype::kFp8E4m3: {
      const uint32_t low =
          __nv_cvt_float_to_fp8(x / sink.scale, __NV_SATFINITE, __NV_E4M3);
      const uint32_t high =
          __nv_cvt_float_to_fp8(y / sink.scale, __NV_SATFINITE, __NV_E4M3);
      static_cast<uint16_t*>(sink.data)[at / 2] =
          static_cast<uint16_t>(low | high << 8);
      return;
    }
    case WeightDtype::kFp16:
      static_cast<uint32_t*>(sink.data)[at / 2] = Pack<__half>(x, y);
      return;
    case WeightDtype::kBf16:
      static_cast<uint32_t*>(sink.data)[at / 2] = Pack<__nv_bfloat16>(x, y);
      return;
    case WeightDtype::kFp32:
      static_cast<float2*>(sink.data)[at / 2] = {x, y};
      return;
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_INPUT_PAIR_CUH_
