// Sixteen fixed lanes: the unit in which the CPU backend computes.
//
// A dot product's lane j sums k = j, j + 16, j + 32, ... ascending, each step
// one fused multiply-add; the lanes fold as one fixed tree. The order is part
// of the numerics contract and is the same for AVX2 and AVX-512 machines,
// because it is written here and chosen nowhere else. Only for files compiled
// for x86-64-v3.
#ifndef INVAR_KERNELS_CPU_LANES_H_
#define INVAR_KERNELS_CPU_LANES_H_

#include <immintrin.h>

#include <cstdint>

namespace invar::cpu {

struct Lanes {
  __m256 low;   // lanes 0-7
  __m256 high;  // lanes 8-15
};

inline Lanes Broadcast(float value) {
  const __m256 v = _mm256_set1_ps(value);
  return {v, v};
}

inline Lanes Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }

inline Lanes Load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

inline void Store(Lanes a, float* p) {
  _mm256_storeu_ps(p, a.low);
  _mm256_storeu_ps(p + 8, a.high);
}

inline Lanes Add(Lanes a, Lanes b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}

inline Lanes Subtract(Lanes a, Lanes b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}

inline Lanes Multiply(Lanes a, Lanes b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}

inline Lanes Divide(Lanes a, Lanes b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}

// a * b + c, rounded once.
inline Lanes MultiplyAdd(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low),
          _mm256_fmadd_ps(a.high, b.high, c.high)};
}

inline Lanes Max(Lanes a, Lanes b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}

// Lane j + lane j+8, then j+4, j+2, j+1.
inline float Sum(Lanes a) {
  const __m256 eight = _mm256_add_ps(a.low, a.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight),
                                 _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline float Max(Lanes a) {
  const __m256 eight = _mm256_max_ps(a.low, a.high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight),
                                 _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// All bits set where the lane is infinite or not a number: x - x is not 0.
inline __m256 NonFinite(Lanes a) {
  const __m256 zero = _mm256_setzero_ps();
  return _mm256_or_ps(
      _mm256_cmp_ps(_mm256_sub_ps(a.low, a.low), zero, _CMP_NEQ_UQ),
      _mm256_cmp_ps(_mm256_sub_ps(a.high, a.high), zero, _CMP_NEQ_UQ));
}

}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_LANES_H_
