// Compiled for any x86-64, each loop for its own processors.
#include "kernels/cpu/multiply_adds.h"

#include <immintrin.h>

#include <chrono>

namespace invar::cpu {
namespace {

// Independent sums that hide the latency of their additions.
constexpr int kChains = 16;

// Each loops over rounds of kChains multiply-adds. What they start from and
// `factor` are made opaque, so that no two are found to be the same.

__attribute__((target("avx2,fma"))) float FusedMultiplyAdds256(int64_t rounds) {
  __m256 factor = _mm256_set1_ps(1.0f);
  __m256 sum[kChains];
#pragma GCC unroll 16
  for (__m256& chain : sum) {
    chain = factor;
    asm volatile("" : "+x"(chain));
  }
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+x"(factor));
#pragma GCC unroll 16
    for (__m256& chain : sum) chain = _mm256_fmadd_ps(factor, factor, chain);
  }
  __m256 total = sum[0];
#pragma GCC unroll 16
  for (const __m256 chain : sum) total = _mm256_add_ps(total, chain);
  return _mm256_cvtss_f32(total);
}

__attribute__((target("avx512f"))) float FusedMultiplyAdds512(int64_t rounds) {
  __m512 factor = _mm512_set1_ps(1.0f);
  __m512 sum[kChains];
#pragma GCC unroll 16
  for (__m512& chain : sum) {
    chain = factor;
    asm volatile("" : "+v"(chain));
  }
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+v"(factor));
#pragma GCC unroll 16
    for (__m512& chain : sum) chain = _mm512_fmadd_ps(factor, factor, chain);
  }
  __m512 total = sum[0];
#pragma GCC unroll 16
  for (const __m512 chain : sum) total = _mm512_add_ps(total, chain);
  return _mm512_cvtss_f32(total);
}

__attribute__((target("avx512f,avx512bf16"))) float PairMultiplyAdds512(
    int64_t rounds) {
  __m512 factor = _mm512_set1_ps(1.0f);
  __m512 sum[kChains];
#pragma GCC unroll 16
  for (__m512& chain : sum) {
    chain = factor;
    asm volatile("" : "+v"(chain));
  }
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+v"(factor));
    const auto pairs = reinterpret_cast<__m512bh>(factor);
#pragma GCC unroll 16
    for (__m512& chain : sum) chain = _mm512_dpbf16_ps(chain, pairs, pairs);
  }
  __m512 total = sum[0];
#pragma GCC unroll 16
  for (const __m512 chain : sum) total = _mm512_add_ps(total, chain);
  return _mm512_cvtss_f32(total);
}

}  // namespace

const MultiplyAdds kFp32MultiplyAdds256 = {FusedMultiplyAdds256, 8 * kChains};
const MultiplyAdds kFp32MultiplyAdds512 = {FusedMultiplyAdds512, 16 * kChains};
const MultiplyAdds kPairMultiplyAdds512 = {PairMultiplyAdds512, 32 * kChains};

double RateOf(const MultiplyAdds& loop, int64_t rounds) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  float sum = loop.run(rounds);
  asm volatile("" : "+x"(sum));
  const std::chrono::duration<double, std::milli> time = Clock::now() - start;
  return static_cast<double>(rounds * loop.a_round) / time.count();
}

}  // namespace invar::cpu
