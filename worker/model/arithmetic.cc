#include "worker/model/arithmetic.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/cpu/multiply_adds.h"

namespace invar {
namespace {

// Multiply-adds a millisecond of `loop` on every thread at once.
double Rate(cpu::ThreadPool& pool, const cpu::MultiplyAdds& loop) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kLoops = 64;
  constexpr int64_t kRounds = 1 << 16;
  std::vector<float> results(kLoops);
  double best = 0.0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto start = Clock::now();
    pool.ParallelFor(kLoops, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) results[i] = loop.run(kRounds);
    });
    const std::chrono::duration<double, std::milli> time = Clock::now() - start;
    best = std::max(best, static_cast<double>(kLoops * kRounds * loop.a_round) /
                              time.count());
  }
  return best;
}

}  // namespace

PeakRates MeasurePeakRates(cpu::ThreadPool& pool) {
  PeakRates rates;
  rates.fp32 = pool.isa() == cpu::Isa::kAvx2
                   ? Rate(pool, cpu::kFp32MultiplyAdds256)
                   : Rate(pool, cpu::kFp32MultiplyAdds512);
  rates.pairs = pool.isa() == cpu::Isa::kAvx512Bf16
                    ? Rate(pool, cpu::kPairMultiplyAdds512)
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
