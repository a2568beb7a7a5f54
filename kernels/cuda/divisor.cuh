// Division of many values by one.
#ifndef INVAR_KERNELS_CUDA_DIVISOR_CUH_
#define INVAR_KERNELS_CUDA_DIVISOR_CUH_

namespace invar::cuda {

// The nearest of x / divisor, for many x: a division's own checks cost as much
// as it. `inverse` is the nearest of 1 / divisor, so one correction is enough.
// An infinite divisor makes zeros, and zero stays zero; the quotient itself
// must not overflow, nor the inverse but for that.
struct Divisor {
  float negative;
  float inverse;

  __device__ explicit Divisor(float divisor)
      : negative(isinf(divisor) ? 0.0f : -divisor),
        inverse(fminf(1.0f / divisor, 0x1.fffffep127f)) {}
  __device__ float operator()(float x) const {
    const float nearly = x * inverse;
    return fmaf(fmaf(negative, nearly, x), inverse, nearly);
  }
};

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_DIVISOR_CUH_
