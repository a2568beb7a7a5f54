// Sixteen lanes in one register: what avx512.cc and avx512_bf16.cc, which are
// compiled for it, give to the kernels. In an unnamed namespace, as those are;
// uses nothing of lanes.h, whose functions other files share.
#ifndef INVAR_KERNELS_CPU_AVX512_SIMD_H_
#define INVAR_KERNELS_CPU_AVX512_SIMD_H_

#include <immintrin.h>

#include <type_traits>

#include "kernels/cpu/codes.h"

namespace invar::cpu {
namespace {

// Four sums each of a, b, c and d: as a 4x4 matrix of 128-bit blocks, whose
// element 4 i + j is the sum of the lanes of the vector that was block i of
// the j-th argument.
inline __m512 FoldBlocks(__m512 a, __m512 b, __m512 c, __m512 d) {
  // Lane j + lane j+2, then + lane j+1.
  const __m512 ab =
      _mm512_add_ps(_mm512_shuffle_ps(a, b, _MM_SHUFFLE(1, 0, 1, 0)),
                    _mm512_shuffle_ps(a, b, _MM_SHUFFLE(3, 2, 3, 2)));
  const __m512 cd =
      _mm512_add_ps(_mm512_shuffle_ps(c, d, _MM_SHUFFLE(1, 0, 1, 0)),
                    _mm512_shuffle_ps(c, d, _MM_SHUFFLE(3, 2, 3, 2)));
  return _mm512_add_ps(_mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(2, 0, 2, 0)),
                       _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 1, 3, 1)));
}

// Four vectors to four blocks of four lanes each: lane j + lane j+8, then
// + lane j+4.
inline __m512 FoldToBlocks(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab =
      _mm512_add_ps(_mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(1, 0, 1, 0)),
                    _mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(3, 2, 3, 2)));
  const __m512 cd =
      _mm512_add_ps(_mm512_shuffle_f32x4(c, d, _MM_SHUFFLE(1, 0, 1, 0)),
                    _mm512_shuffle_f32x4(c, d, _MM_SHUFFLE(3, 2, 3, 2)));
  return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, _MM_SHUFFLE(2, 0, 2, 0)),
                       _mm512_shuffle_f32x4(ab, cd, _MM_SHUFFLE(3, 1, 3, 1)));
}

struct Avx512 {
  using Vector = __m512;
  // 24 sums, four decoded weights and an input fit in 32 registers.
  static constexpr int kTokens = 6;
  static constexpr int kPanelTokens = 6;
  static constexpr int Rows(int) { return 4; }
  static constexpr int kColumnTokens = 6;
  static constexpr int ColumnGroups(int tokens) { return tokens == 1 ? 16 : 4; }
  static constexpr int kTileRows = 4;
  static constexpr int kTileGroups = 2;

  static __m512 Zero() { return _mm512_setzero_ps(); }
  static __m512 Broadcast(float value) { return _mm512_set1_ps(value); }
  static __m512 Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(__m512 a, float* p) { _mm512_storeu_ps(p, a); }
  static __m512 Multiply(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
  static __m512 MultiplyAdd(__m512 a, __m512 b, __m512 c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  // Lane j + lane j+8, then j+4, j+2, j+1.
  static float Sum(__m512 a) {
    const __m256 eight =
        _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight),
                                   _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  // sums[t * kRows + r] = Sum(sum[r][t]): the same additions, four rows by
  // four tokens at a time.
  template <int kRows, int kTokens>
  static void Sums(const __m512 (&sum)[kRows][kTokens], float* sums) {
    if constexpr (kRows == 4) {
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; t += 4) {
        constexpr int kLast = kTokens - 1;
        const int t1 = t + 1 < kLast ? t + 1 : kLast;
        const int t2 = t + 2 < kLast ? t + 2 : kLast;
        const int t3 = t + 3 < kLast ? t + 3 : kLast;
        __m512 rows[4];
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          rows[r] = FoldToBlocks(sum[r][t], sum[r][t1], sum[r][t2], sum[r][t3]);
        }
        const __m512 all = FoldBlocks(rows[0], rows[1], rows[2], rows[3]);
        if (kTokens - t >= 4) {
          _mm512_storeu_ps(sums + 4 * t, all);
        } else {
          const __mmask16 kept = (1 << (4 * (kTokens - t))) - 1;
          _mm512_mask_storeu_ps(sums + 4 * t, kept, all);
        }
      }
    } else {
      for (int r = 0; r < kRows; ++r) {
        for (int t = 0; t < kTokens; ++t) sums[t * kRows + r] = Sum(sum[r][t]);
      }
    }
  }
  template <typename Code>
  static __m512 Decode(const std::byte* p) {
    if constexpr (std::is_same_v<Code, Fp32Code>) {
      return _mm512_loadu_ps(p);
    } else if constexpr (std::is_base_of_v<Fp8E4m3Code, Code>) {
      // As in codes.h: an fp16 of value * 2^-8.
      const __m256i codes = _mm256_cvtepi8_epi16(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
      const __m256i half =
          _mm256_and_si256(_mm256_slli_epi16(codes, 7),
                           _mm256_set1_epi16(static_cast<int16_t>(0xbfff)));
      return _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f));
    } else if constexpr (std::is_same_v<Code, Fp8E5m2Code>) {
      const __m256i codes = _mm256_cvtepu8_epi16(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
      return _mm512_cvtph_ps(_mm256_slli_epi16(codes, 8));
    } else {
      const __m256i codes =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
      if constexpr (std::is_same_v<Code, Fp16Code>) {
        return _mm512_cvtph_ps(codes);
      } else {
        static_assert(std::is_same_v<Code, Bf16Code>);
        return _mm512_castsi512_ps(
            _mm512_slli_epi32(_mm512_cvtepu16_epi32(codes), 16));
      }
    }
  }
};

}  // namespace
}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_AVX512_SIMD_H_
