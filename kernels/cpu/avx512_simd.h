// Sixteen lanes in one register: what avx512.cc and avx512_bf16.cc, which are
// compiled for it, give to the kernels. In an unnamed namespace, as those are;
// uses nothing of lanes.h, whose functions other files share.
#ifndef INVAR_KERNELS_CPU_AVX512_SIMD_H_
#define INVAR_KERNELS_CPU_AVX512_SIMD_H_

#include <immintrin.h>

#include <type_traits>

#include "kernels/cpu/codes.h"
#include "kernels/cpu/mla_attention_kernel.h"

namespace invar::cpu {
namespace {

// The lanes of several vectors are summed together, each step as Sum does it
// for one: lane j + lane j+8, then j+4, j+2, j+1.

// Eight lanes of a, then eight of b.
inline __m512 FoldToHalves(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_mask_blend_ps(0xff00, a, b),
                       _mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(1, 0, 3, 2)));
}

// From halves of two vectors each, four lanes of each vector in order.
inline __m512 FoldToBlocks(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(2, 0, 2, 0)),
                       _mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(3, 1, 3, 1)));
}

// In each block of four lanes, two of a, then two of b.
inline __m512 FoldToPairs(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, a, b),
                       _mm512_shuffle_ps(a, b, _MM_SHUFFLE(1, 0, 3, 2)));
}

// In each block of four lanes, the sums of the two pairs of a, then of b.
inline __m512 FoldPairs(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)),
                       _mm512_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)));
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
  template <typename Code>
  using Run = Vectors<Avx512, Code, 4>;

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
      int t = 0;
#pragma GCC unroll 8
      for (; t + 4 <= kTokens; t += 4) {
        _mm512_storeu_ps(sums + 4 * t, SumFourTokens(sum, t));
      }
      if constexpr (kTokens % 4 == 3) SumTwoTokens(sum, t, sums), t += 2;
      if constexpr (kTokens % 4 == 2) SumTwoTokens(sum, t, sums);
      if constexpr (kTokens % 2 == 1) SumOneToken(sum, t, sums);
    } else {
      for (int r = 0; r < kRows; ++r) {
        for (int t = 0; t < kTokens; ++t) sums[t * kRows + r] = Sum(sum[r][t]);
      }
    }
  }
  template <int kTokens>
  static __m512 SumFourTokens(const __m512 (&sum)[4][kTokens], int t) {
    __m512 rows[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      rows[r] = FoldToBlocks(FoldToHalves(sum[r][t], sum[r][t + 1]),
                             FoldToHalves(sum[r][t + 2], sum[r][t + 3]));
    }
    return FoldPairs(FoldToPairs(rows[0], rows[1]),
                     FoldToPairs(rows[2], rows[3]));
  }
  template <int kTokens>
  static void SumTwoTokens(const __m512 (&sum)[4][kTokens], int t,
                           float* sums) {
    // Blocks: row 0 or 2 of either token, then row 1 or 3 of either.
    const __m512 low = FoldToBlocks(FoldToHalves(sum[0][t], sum[0][t + 1]),
                                    FoldToHalves(sum[1][t], sum[1][t + 1]));
    const __m512 high = FoldToBlocks(FoldToHalves(sum[2][t], sum[2][t + 1]),
                                     FoldToHalves(sum[3][t], sum[3][t + 1]));
    const __m512 pairs = FoldToPairs(low, high);
    const __m512 all = FoldPairs(pairs, pairs);
    const __m512i order =
        _mm512_setr_epi32(0, 8, 1, 9, 4, 12, 5, 13, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm256_storeu_ps(sums + 4 * t,
                     _mm512_castps512_ps256(_mm512_permutexvar_ps(order, all)));
  }
  template <int kTokens>
  static void SumOneToken(const __m512 (&sum)[4][kTokens], int t, float* sums) {
    const __m512 blocks = FoldToBlocks(FoldToHalves(sum[0][t], sum[1][t]),
                                       FoldToHalves(sum[2][t], sum[3][t]));
    const __m512 pairs = FoldToPairs(blocks, blocks);
    const __m512 all = FoldPairs(pairs, pairs);
    const __m512i order =
        _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm_storeu_ps(sums + 4 * t,
                  _mm512_castps512_ps128(_mm512_permutexvar_ps(order, all)));
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
