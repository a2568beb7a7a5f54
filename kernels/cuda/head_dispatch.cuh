// The dtypes that kv_b_proj's halves may have.
#ifndef INVAR_KERNELS_CUDA_HEAD_DISPATCH_CUH_
#define INVAR_KERNELS_CUDA_HEAD_DISPATCH_CUH_

#include "kernels/cuda/operands.cuh"

namespace invar::cuda {

// body.template operator()<Code>() for the weights' code.
template <typename Body>
void DispatchHead(WeightDtype dtype, Body body) {
  switch (dtype) {
    case WeightDtype::kFp8E4m3:
      return body.template operator()<E4m3>();
    case WeightDtype::kFp16:
      return body.template operator()<Fp16>();
    case WeightDtype::kBf16:
      return body.template operator()<Bf16>();
    case WeightDtype::kFp32:
      return;  // the loader refuses it
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_HEAD_DISPATCH_CUH_
