// Division of many values by one.
#ifndef INVAR_KERNELS_CUDA_DIVISOR_CUH_
#define INVAR_KERNELS_CUDA_DIVISOR_CUH_

namespace invar::cuda {

// The nearest of x / divisor, for many x: a division's own checks cost as much
// as it. `inverse` is the nearest of 1 / divisor, so one correction is enough.
// An infinite divisor makes zeros; the quotient itself must not overflow.
struct Divisor {
  float negative;
  float inverse;

  __device__ explicit Divisor(float divisor)
      : negative(isinf(divisor) ? 0.0f : -divisor), inverse(1.0f / divisor) {}
  __device__ float operator()(float x) const {
    const float nearly = x * inverse;
    return fmaf(fmaf(negative, nearly, x), inverse, nearly);
  }
};

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_DIVISOR_CUH_
