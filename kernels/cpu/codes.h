// Number formats: exact decoding to fp32, rounding from it.
//
// Every FP8 value is an fp16 value after a shift of its bits, so decoding goes
// through F16C and is exact; rounding is nearest-even and saturates, and keeps
// a NaN a NaN. Only for files compiled for x86-64-v3.
#ifndef INVAR_KERNELS_CPU_CODES_H_
#define INVAR_KERNELS_CPU_CODES_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/lanes.h"
#include "kernels/types.h"

namespace invar::cpu {

// Each format: Decode 16 elements, Encode 16 values, Round values to the grid.

struct Fp32Code {
  static constexpr int64_t kBytes = 4;
  static Lanes Decode(const std::byte* p) {
    return Load(reinterpret_cast<const float*>(p));
  }
  static void Encode(Lanes x, std::byte* p) {
    Store(x, reinterpret_cast<float*>(p));
  }
};

struct Fp16Code {
  static constexpr int64_t kBytes = 2;
  static Lanes Decode(const std::byte* p) {
    const auto* codes = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(codes)),
            _mm256_cvtph_ps(_mm_loadu_si128(codes + 1))};
  }
};

// A value's nearest neighbour with kMantissa explicit bits, of magnitude at
// most kMax, ties to even; subnormal below 2^kMinExponent.
template <int kMantissa, int kMinExponent>
inline __m256 RoundToGrid(__m256 x, float max) {
  constexpr int kDropped = 23 - kMantissa;
  // max/min return the second operand for a NaN.
  const __m256 clamped = _mm256_max_ps(_mm256_set1_ps(-max),
                                       _mm256_min_ps(_mm256_set1_ps(max), x));
  const __m256i bits = _mm256_castps_si256(clamped);
  const __m256i odd =
      _mm256_and_si256(_mm256_srli_epi32(bits, kDropped), _mm256_set1_epi32(1));
  const __m256i half = _mm256_set1_epi32((1 << (kDropped - 1)) - 1);
  const __m256 normal = _mm256_castsi256_ps(
      _mm256_and_si256(_mm256_add_epi32(bits, _mm256_add_epi32(odd, half)),
                       _mm256_set1_epi32(-(1 << kDropped))));
  __m256 rounded = normal;
  if constexpr (kMinExponent > -126) {
    // Adding 1.5 * 2^23 quanta leaves no bits below a quantum.
    const __m256 quanta = _mm256_castsi256_ps(_mm256_set1_epi32(
        ((127 + 23 + kMinExponent - kMantissa) << 23) | (1 << 22)));
    const __m256 sign = _mm256_and_ps(_mm256_set1_ps(-0.0f), clamped);
    const __m256 magnitude = _mm256_xor_ps(sign, clamped);
    const __m256 subnormal = _mm256_or_ps(
        sign, _mm256_sub_ps(_mm256_add_ps(magnitude, quanta), quanta));
    const __m256 least =
        _mm256_castsi256_ps(_mm256_set1_epi32((127 + kMinExponent) << 23));
    rounded = _mm256_blendv_ps(normal, subnormal,
                               _mm256_cmp_ps(magnitude, least, _CMP_LT_OQ));
  }
  return _mm256_blendv_ps(rounded, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

struct Bf16Code {
  static constexpr int64_t kBytes = 2;
  static Lanes Decode(const std::byte* p) {
    const auto* codes = reinterpret_cast<const __m128i*>(p);
    return {Widen(_mm_loadu_si128(codes)), Widen(_mm_loadu_si128(codes + 1))};
  }
  static Lanes Round(Lanes x) {
    // The largest finite bf16, 2^128 - 2^120.
    const float max =
        _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(0x7f7f0000)));
    return {RoundToGrid<7, -126>(x.low, max),
            RoundToGrid<7, -126>(x.high, max)};
  }
  static void Encode(Lanes x, std::byte* p) {
    x = Round(x);
    alignas(32) uint32_t bits[16];
    _mm256_store_si256(reinterpret_cast<__m256i*>(bits),
                       _mm256_castps_si256(x.low));
    _mm256_store_si256(reinterpret_cast<__m256i*>(bits + 8),
                       _mm256_castps_si256(x.high));
    for (int i = 0; i < 16; ++i) {
      const uint16_t code = static_cast<uint16_t>(bits[i] >> 16);
      std::memcpy(p + 2 * i, &code, 2);
    }
  }

 private:
  static __m256 Widen(__m128i codes) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(codes), 16));
  }
};

// 16 fp16 patterns to the bytes at bits [shift, shift + 8).
inline __m128i NarrowToBytes(__m128i low, __m128i high) {
  const __m128i mask = _mm_set1_epi16(0xff);
  return _mm_packus_epi16(_mm_and_si128(low, mask), _mm_and_si128(high, mask));
}

struct Fp8E5m2Code {
  static constexpr int64_t kBytes = 1;
  static constexpr float kMax = 57344.0f;
  static Lanes Decode(const std::byte* p) {
    // code << 8 is the fp16 of the same value.
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i zero = _mm_setzero_si128();
    return {_mm256_cvtph_ps(_mm_unpacklo_epi8(zero, codes)),
            _mm256_cvtph_ps(_mm_unpackhi_epi8(zero, codes))};
  }
  static Lanes Round(Lanes x) {
    return {RoundToGrid<2, -14>(x.low, kMax),
            RoundToGrid<2, -14>(x.high, kMax)};
  }
  static void Encode(Lanes x, std::byte* p) {
    x = Round(x);
    const __m128i low = _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT);
    const __m128i high = _mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(p),
        NarrowToBytes(_mm_srli_epi16(low, 8), _mm_srli_epi16(high, 8)));
  }
};

struct Fp8E4m3Code {
  static constexpr int64_t kBytes = 1;
  static constexpr float kMax = 448.0f;
  static Lanes Decode(const std::byte* p) {
    // With the code in the high byte, an arithmetic shift by one puts the
    // exponent where fp16 has its own, 8 higher: value * 2^-8. The shift
    // doubles the sign, so the second copy is cleared.
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i zero = _mm_setzero_si128();
    const __m128i mask = _mm_set1_epi16(static_cast<int16_t>(0xbfff));
    const __m128i low =
        _mm_and_si128(_mm_srai_epi16(_mm_unpacklo_epi8(zero, codes), 1), mask);
    const __m128i high =
        _mm_and_si128(_mm_srai_epi16(_mm_unpackhi_epi8(zero, codes), 1), mask);
    const __m256 scale = _mm256_set1_ps(256.0f);
    return {_mm256_mul_ps(_mm256_cvtph_ps(low), scale),
            _mm256_mul_ps(_mm256_cvtph_ps(high), scale)};
  }
  static Lanes Round(Lanes x) {
    return {RoundToGrid<3, -6>(x.low, kMax), RoundToGrid<3, -6>(x.high, kMax)};
  }
  static void Encode(Lanes x, std::byte* p) {
    x = Multiply(Round(x), Broadcast(1.0f / 256.0f));
    const __m128i low = _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT);
    const __m128i high = _mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     NarrowToBytes(Place(low), Place(high)));
  }

 private:
  // fp16 s eeeee mmmmmmmmmm, eeeee < 16 -> s eeee mmm.
  static __m128i Place(__m128i half) {
    return _mm_or_si128(
        _mm_and_si128(_mm_srli_epi16(half, 7), _mm_set1_epi16(0x7f)),
        _mm_and_si128(_mm_srli_epi16(half, 8), _mm_set1_epi16(0x80)));
  }
};

namespace {  // each instruction set's own: see dot_kernel.h

// Fetches what is needed soon into the second-level cache; past an end is fine.
// Always inline: GCC 12 drops a call whose only effect is to prefetch.
[[gnu::always_inline]] inline void PrefetchBytes(const std::byte* data,
                                                 int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(data + i), _MM_HINT_T1);
  }
}

}  // namespace

// Calls body with the format of a weight's dtype: body(Bf16Code()).
template <typename Body>
void DispatchWeight(WeightDtype dtype, Body body) {
  switch (dtype) {
    case WeightDtype::kBf16:
      return body(Bf16Code());
    case WeightDtype::kFp16:
      return body(Fp16Code());
    case WeightDtype::kFp32:
      return body(Fp32Code());
    case WeightDtype::kFp8E4m3:
      return body(Fp8E4m3Code());
  }
}

template <typename Body>
void DispatchKv(KvDtype dtype, Body body) {
  switch (dtype) {
    case KvDtype::kFp8E5m2:
      return body(Fp8E5m2Code());
    case KvDtype::kFp8E4m3:
      return body(Fp8E4m3Code());
    case KvDtype::kBf16:
      return body(Bf16Code());
    case KvDtype::kFp32:
      return body(Fp32Code());
  }
}

}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_CODES_H_
