// Compiled for x86-64-v4: runs only where BestIsa() says so. Uses nothing of
// lanes.h, whose functions other files share.
#include "kernels/cpu/dot_kernel.h"

namespace invar::cpu {
namespace {

struct Avx512 {
  using Vector = __m512;
  // 24 sums, four decoded weights and an input fit in 32 registers.
  static constexpr int kTokens = 6;
  static constexpr int kPanelTokens = 6;
  static constexpr int Rows(int) { return 4; }

  static __m512 Zero() { return _mm512_setzero_ps(); }
  static __m512 Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(__m512 a, float* p) { _mm512_storeu_ps(p, a); }
  static __m512 MultiplyAdd(__m512 a, __m512 b, __m512 c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  static __m512 Scale(__m512 a, float scale) {
    return _mm512_mul_ps(a, _mm512_set1_ps(scale));
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

void DotAvx512(const DotProducts& products) { DotAll<Avx512>(products); }

}  // namespace invar::cpu
