// Division of many values by one, as norms and quantisation need it.
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

// What a norm makes of four values of a row, its root and its gain: one place,
// so that whoever norms a row has RmsNorm's bits.
__device__ inline float4 Normed(const Divisor& root, float4 x, float4 gain) {
  return {root(x.x) * gain.x, root(x.y) * gain.y, root(x.z) * gain.z,
          root(x.w) * gain.w};
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_DIVISOR_CUH_
