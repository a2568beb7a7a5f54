// What tests and benchmarks call a weight's dtype.
#ifndef INVAR_KERNELS_CUDA_TESTING_NAMES_H_
#define INVAR_KERNELS_CUDA_TESTING_NAMES_H_

#include "kernels/types.h"

namespace invar::cuda::testing {

inline const char* Name(WeightDtype dtype) {
  switch (dtype) {
    case WeightDtype::kFp8E4m3:
      return "fp8";
    case WeightDtype::kFp16:
      return "fp16";
    case WeightDtype::kBf16:
      return "bf16";
    case WeightDtype::kFp32:
      return "fp32";
  }
  return "unknown";
}

}  // namespace invar::cuda::testing

#endif  // INVAR_KERNELS_CUDA_TESTING_NAMES_H_
