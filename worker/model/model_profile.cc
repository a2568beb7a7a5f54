// Where a decode step's time goes: milliseconds an operation, all layers
// together, beside the time that its multiply-adds take at the rate which this
// processor reaches in the same process.
//
//   build/bin/model_profile MODEL_FOLDER [SEQUENCES [CONTEXT [THREADS]]]
//
// Medians of kSteps steps. An operation's time is that from the one shown
// before (Model::Observe), so small ones count with the next that is shown.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/thread_pool.h"
#include "worker/model/model.h"

namespace invar {
namespace {

constexpr int kSteps = 101;

using Clock = std::chrono::steady_clock;

double Milliseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2,
                   values.end());
  return values[values.size() / 2];
}

// Independent sums that hide the latency of their additions.
constexpr int kChains = 16;
constexpr int64_t kRounds = 1 << 16;

__attribute__((target("avx512f"))) float FusedMultiplyAdds512() {
  __m512 factor = _mm512_set1_ps(1.0f);
  __m512 sum[kChains];
  for (__m512& chain : sum) chain = factor;
  for (int64_t i = 0; i < kRounds; ++i) {
    asm volatile("" : "+v"(factor));
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) {
      sum[c] = _mm512_fmadd_ps(factor, factor, sum[c]);
    }
  }
  __m512 total = sum[0];
  for (const __m512 chain : sum) total = _mm512_add_ps(total, chain);
  return _mm512_cvtss_f32(total);
}

__attribute__((target("avx2,fma"))) float FusedMultiplyAdds256() {
  __m256 factor = _mm256_set1_ps(1.0f);
  __m256 sum[kChains];
  for (__m256& chain : sum) chain = factor;
  for (int64_t i = 0; i < kRounds; ++i) {
    asm volatile("" : "+x"(factor));
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) {
      sum[c] = _mm256_fmadd_ps(factor, factor, sum[c]);
    }
  }
  __m256 total = sum[0];
  for (const __m256 chain : sum) total = _mm256_add_ps(total, chain);
  return _mm256_cvtss_f32(total);
}

// fp32 multiply-adds a millisecond by the pool's threads, the best of some.
double PeakRate(cpu::ThreadPool& pool) {
  const bool wide = pool.isa() != cpu::Isa::kAvx2;
  constexpr int64_t kLoops = 64;
  std::vector<float> results(kLoops);
  double best = 0.0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto start = Clock::now();
    pool.ParallelFor(kLoops, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        results[i] = wide ? FusedMultiplyAdds512() : FusedMultiplyAdds256();
      }
    });
    const double products =
        static_cast<double>(kLoops * kRounds * kChains * (wide ? 16 : 8));
    best = std::max(best, products / Milliseconds(Clock::now() - start));
  }
  return best;
}

// Multiply-adds of an operation for one token, all layers together: of inputs
// in fp32, and of those that are FP8.
struct Work {
  double fp32 = 0.0;
  double fp8 = 0.0;
};

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

// Decode steps of `sequences` sequences whose cache holds `context` tokens.
class Steps {
 public:
  Steps(Model& model, int64_t sequences, int64_t context)
      : model_(model),
        context_(context),
        tables_(sequences),
        ids_(model.config().vocab_size),
        cache_(model.NewKvCache(sequences * (context / kBlockTokens + 1))),
        logits_(sequences * model.config().vocab_size) {
    std::iota(ids_.begin(), ids_.end(), 0);
    const int64_t blocks = context / kBlockTokens + 1;
    std::vector<int32_t> prompt(context);
    for (int64_t s = 0; s < sequences; ++s) {
      tables_[s].resize(blocks);
      std::iota(tables_[s].begin(), tables_[s].end(), s * blocks);
      for (int32_t& id : prompt) id = NextId();
      const SequenceSlice slice = {.token_ids = prompt,
                                   .block_ids = tables_[s]};
      model.Forward({&slice, 1}, *cache_, {});
    }
  }

  void Run() {
    std::vector<SequenceSlice> slices;
    for (const std::vector<int32_t>& table : tables_) {
      slices.push_back({.token_ids = {&ids_[NextId()], 1},
                        .first_position = context_,
                        .block_ids = table,
                        .logit_rows = 1});
    }
    model_.Forward(slices, *cache_, logits_);
  }

 private:
  int32_t NextId() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int32_t>((state_ >> 33) % ids_.size());
  }

  Model& model_;
  const int64_t context_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<int32_t> ids_;  // ids_[i] == i
  std::unique_ptr<KvCache> cache_;
  std::vector<float> logits_;
  uint64_t state_ = 1;
};

int Main(const std::string& folder, int64_t sequences, int64_t context,
         int threads) {
  auto model = Model::Load({.path = folder, .threads = threads});
  if (!model.ok()) {
    std::fprintf(stderr, "%s\n", model.status().ToString().c_str());
    return 1;
  }
  const ModelConfig& config = (*model)->config();
  if (sequences < 1 || context < 1 ||
      context >= config.max_position_embeddings) {
    std::fprintf(stderr,
                 "SEQUENCES and CONTEXT: 1 or more, CONTEXT below %lld\n",
                 static_cast<long long>(config.max_position_embeddings));
    return 2;
  }
  cpu::ThreadPool pool(threads);
  const double peak = PeakRate(pool);
  Steps steps(**model, sequences, context);
  for (int i = 0; i < 10; ++i) steps.Run();

  std::vector<std::string> order;
  std::map<std::string, std::vector<double>> times;
  std::vector<double> whole;
  std::map<std::string, double> step_times;
  Clock::time_point last;
  const auto count = [&](const std::string& op) {
    const auto now = Clock::now();
    const auto [place, is_new] = step_times.try_emplace(op, 0.0);
    if (is_new && !times.contains(op)) order.push_back(op);
    place->second += Milliseconds(now - last);
    last = Clock::now();
  };
  for (int i = 0; i < kSteps; ++i) {
    (*model)->Observe({});
    const auto start = Clock::now();
    steps.Run();
    whole.push_back(Milliseconds(Clock::now() - start));
    (*model)->Observe([&](const OpOutput& out) { count(std::string(out.op)); });
    step_times.clear();
    last = Clock::now();
    steps.Run();
    count("(end)");
    for (const auto& [op, time] : step_times) times[op].push_back(time);
  }

  const std::map<std::string, Work> work = WorkOf(config, context + 1);
  std::printf("%lld sequences, context %lld, %d threads, %s, %.0f GMAC/s\n",
              static_cast<long long>(sequences),
              static_cast<long long>(context), pool.threads(),
              cpu::Name(pool.isa()), peak / 1e6);
  std::printf("%-16s %9s %9s %9s %9s\n", "operation", "ms", "MMAC", "floor",
              "share");
  // Pairs of bf16 multiply twice as fast.
  const double pair_peak =
      pool.isa() == cpu::Isa::kAvx512Bf16 ? 2.0 * peak : peak;
  double floors = 0.0;
  double products = 0.0;
  const auto line = [](const std::string& op, double ms, double macs,
                       double floor) {
    std::printf("%-16s %9.3f %9.1f %9.3f %8.0f%%\n", op.c_str(), ms, macs / 1e6,
                floor, 100.0 * floor / ms);
  };
  for (const std::string& op : order) {
    const auto found = work.find(op);
    const Work none;
    const Work& w = found == work.end() ? none : found->second;
    const double tokens = static_cast<double>(sequences);
    const double floor = tokens * (w.fp32 / peak + w.fp8 / pair_peak);
    floors += floor;
    products += tokens * (w.fp32 + w.fp8);
    line(op, Median(times[op]), tokens * (w.fp32 + w.fp8), floor);
  }
  line("step", Median(whole), products, floors);
  return 0;
}

}  // namespace
}  // namespace invar

int main(int argc, char** argv) {
  if (argc < 2 || argc > 5) {
    std::fprintf(stderr,
                 "usage: model_profile MODEL_FOLDER [SEQUENCES [CONTEXT "
                 "[THREADS]]]\n");
    return 2;
  }
  const auto number = [&](int i, int64_t otherwise) {
    return argc > i ? std::atoll(argv[i]) : otherwise;
  };
  return invar::Main(argv[1], number(2, 64), number(3, 160),
                     static_cast<int>(number(4, 0)));
}
