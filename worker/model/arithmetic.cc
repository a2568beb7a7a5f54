#include "worker/model/arithmetic.h"

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <vector>

namespace invar {
namespace {

// Independent sums that hide the latency of their additions.
constexpr int kChains = 16;
constexpr int64_t kRounds = 1 << 16;

// Each loops over kRounds rounds of kChains multiply-adds and returns what
// keeps them from being left out. What they start from and `factor` are made
// opaque, so that no two are found to be the same.

__attribute__((target("avx2,fma"))) float FusedMultiplyAdds256() {
  __m256 factor = _mm256_set1_ps(1.0f);
  __m256 sum[kChains];
#pragma GCC unroll 16
  for (__m256& chain : sum) {
    chain = factor;
    asm volatile("" : "+x"(chain));
  }
  for (int64_t i = 0; i < kRounds; ++i) {
    asm volatile("" : "+x"(factor));
#pragma GCC unroll 16
    for (__m256& chain : sum) chain = _mm256_fmadd_ps(factor, factor, chain);
  }
  __m256 total = sum[0];
#pragma GCC unroll 16
  for (const __m256 chain : sum) total = _mm256_add_ps(total, chain);
  return _mm256_cvtss_f32(total);
}

__attribute__((target("avx512f"))) float FusedMultiplyAdds512() {
  __m512 factor = _mm512_set1_ps(1.0f);
  __m512 sum[kChains];
#pragma GCC unroll 16
  for (__m512& chain : sum) {
    chain = factor;
    asm volatile("" : "+v"(chain));
  }
  for (int64_t i = 0; i < kRounds; ++i) {
    asm volatile("" : "+v"(factor));
#pragma GCC unroll 16
    for (__m512& chain : sum) chain = _mm512_fmadd_ps(factor, factor, chain);
  }
  __m512 total = sum[0];
#pragma GCC unroll 16
  for (const __m512 chain : sum) total = _mm512_add_ps(total, chain);
  return _mm512_cvtss_f32(total);
}

__attribute__((target("avx512f,avx512bf16"))) float PairMultiplyAdds512() {
  __m512 factor = _mm512_set1_ps(1.0f);
  __m512 sum[kChains];
#pragma GCC unroll 16
  for (__m512& chain : sum) {
    chain = factor;
    asm volatile("" : "+v"(chain));
  }
  for (int64_t i = 0; i < kRounds; ++i) {
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

// Multiply-adds a millisecond of `loop`, which makes `width` of them a chain
// and round, on every thread at once.
double Rate(cpu::ThreadPool& pool, float (*loop)(), int width) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kLoops = 64;
  std::vector<float> results(kLoops);
  double best = 0.0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto start = Clock::now();
    pool.ParallelFor(kLoops, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) results[i] = loop();
    });
    const std::chrono::duration<double, std::milli> time = Clock::now() - start;
    best =
        std::max(best, static_cast<double>(kLoops * kRounds * kChains * width) /
                           time.count());
  }
  return best;
}

}  // namespace

PeakRates MeasurePeakRates(cpu::ThreadPool& pool) {
  PeakRates rates;
  rates.fp32 = pool.isa() == cpu::Isa::kAvx2
                   ? Rate(pool, FusedMultiplyAdds256, 8)
                   : Rate(pool, FusedMultiplyAdds512, 16);
  rates.pairs = pool.isa() == cpu::Isa::kAvx512Bf16
                    ? Rate(pool, PairMultiplyAdds512, 32)
                    : rates.fp32;
  return rates;
}

std::map<std::string, Work> WorkOf(const ModelConfig& c, int64_t context) {
  const bool fp8 = c.quantization.inputs != InputScaling::kNone;
  std::map<std::string, Work> work;
  const auto linear = [&](const char* op, int64_t layers, int64_t products) {
    const double count = static_cast<double>(layers * products);
    (fp8 ? work[op].fp8 : work[op].fp32) += count;
  };
  const auto exact = [&](const char* op, int64_t layers, int64_t products) {
    work[op].fp32 += static_cast<double>(layers * products);
  };
  const int64_t q_size = c.heads * c.qk_head_dim();
  linear("q", c.layers,
         c.q_lora_rank == 0 ? c.hidden_size * q_size
                            : c.q_lora_rank * (c.hidden_size + q_size));
  linear("kv_a", c.layers, c.hidden_size * c.kv_row_elements());
  exact("absorb_query", c.layers,
        c.heads * c.qk_nope_head_dim * c.kv_lora_rank);
  exact("mla_attention", c.layers,
        c.heads * context * (c.kv_row_elements() + c.kv_lora_rank));
  exact("absorb_value", c.layers, c.heads * c.v_head_dim * c.kv_lora_rank);
  linear("o", c.layers, c.heads * c.v_head_dim * c.hidden_size);
  const int64_t sparse = c.layers - c.dense_layers;
  linear("mlp", c.dense_layers, 3 * c.hidden_size * c.intermediate_size);
  const int64_t expert = 3 * c.hidden_size * c.moe_intermediate_size;
  linear("mlp", sparse, c.shared_experts * expert);
  linear("experts", sparse, c.router.top_k * expert);
  exact("router", sparse, c.router.experts * c.hidden_size);
  exact("lm_head", 1, c.vocab_size * c.hidden_size);
  return work;
}

}  // namespace invar
