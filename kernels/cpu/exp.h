// e^x in fp32 lanes: the exponential of every softmax, SiLU and sample.
#ifndef INVAR_KERNELS_CPU_EXP_H_
#define INVAR_KERNELS_CPU_EXP_H_

#include "kernels/cpu/lanes.h"

namespace invar::cpu {

// e^x = 2^n e^r with n = x / ln 2 rounded to nearest, |r| <= ln(2)/2, and e^r
// by Taylor's series to r^7: within 2 units in the last place. 0 below -87 (no
// subnormal results), infinity above 88; a NaN stays one.
inline __m256 Exp(__m256 x) {
  const __m256 n =
      _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                      _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  // ln 2 in two parts, the first with room for n's bits.
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
  __m256 sum = _mm256_set1_ps(1.0f / 5040.0f);
  sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f / 720.0f));
  sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f / 120.0f));
  sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f / 24.0f));
  sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f / 6.0f));
  sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(0.5f));
  sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f));
  sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f));
  const __m256i exponent =
      _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  __m256 result =
      _mm256_mul_ps(sum, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  const __m256 infinity = _mm256_castsi256_ps(_mm256_set1_epi32(0x7f800000));
  result = _mm256_blendv_ps(
      result, infinity, _mm256_cmp_ps(x, _mm256_set1_ps(88.0f), _CMP_GT_OQ));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_LT_OQ),
                          result);
}

inline Lanes Exp(Lanes x) { return {Exp(x.low), Exp(x.high)}; }

inline float Exp(float x) { return _mm256_cvtss_f32(Exp(_mm256_set1_ps(x))); }

}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_EXP_H_
