// Speed of random models: the embedded one's shape, and one dense and one MoE
// layer of DeepSeek-V2-Lite's, whose weights exceed any cache.
//
//   build/bin/model_bench --benchmark_repetitions=5
//
// `bytes` is what a step must read of the weights, counting the experts hit
// (at batch 1 exactly, else their expected number); `bandwidth` is the rate of
// that over `read`, the bytes a second which as many threads read of another
// buffer between the steps: medians of both, so that a noisy machine moves
// both. The embedded shape stays in caches that such reading would empty: no
// share.
#include <benchmark/benchmark.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/thread_pool.h"
#include "worker/model/checkpoint/architecture.h"
#include "worker/model/model.h"
#include "worker/model/testing/random_checkpoint.h"

namespace invar {
namespace {

enum Shape : int64_t { kEmbeddedFp8, kLiteBf16, kLiteFp8 };

ModelConfig Config(Shape shape) {
  ModelConfig config = testing::EmbeddedModelConfig();
  if (shape == kEmbeddedFp8) return config;
  config.layers = 2;
  config.hidden_size = 2048;
  config.heads = 16;
  config.intermediate_size = 10944;
  config.moe_intermediate_size = 1408;
  config.router.experts = 64;
  config.router.top_k = 6;
  if (shape == kLiteBf16) config.quantization = {};
  return config;
}

// Written and loaded once a shape and number of threads, since gigabytes are.
Model* LoadModel(Shape shape, int threads) {
  static std::map<std::pair<Shape, int>, std::unique_ptr<Model>> models;
  std::unique_ptr<Model>& model = models[{shape, threads}];
  if (model != nullptr) return model.get();
  models.clear();
  const std::string folder = std::filesystem::temp_directory_path() /
                             absl::StrCat("invar_model_bench_", getpid());
  const absl::Status written = testing::WriteRandomCheckpoint(
      folder, Config(shape), /*seed=*/1, /*shards=*/8);
  if (written.ok()) {
    auto loaded = Model::Load({.path = folder, .threads = threads});
    if (loaded.ok()) models[{shape, threads}] = *std::move(loaded);
  }
  std::error_code error;
  std::filesystem::remove_all(folder, error);
  return models[{shape, threads}].get();
}

// Bytes of weights that a step of `tokens` tokens reads, logits for
// `logit_rows` of them.
double WeightBytes(const ModelConfig& config, int64_t tokens) {
  const double experts = static_cast<double>(config.router.experts);
  const double hit =
      1.0 - std::pow(1.0 - static_cast<double>(config.router.top_k) / experts,
                     static_cast<double>(tokens));
  double bytes = 0.0;
  for (const TensorSpec& tensor : ArchitectureTensors(config)) {
    if (tensor.shape.size() != 2) continue;
    if (tensor.name.find("embed_tokens") != std::string::npos) continue;
    const double size = static_cast<double>(tensor.shape[0]) *
                        static_cast<double>(tensor.shape[1]) *
                        (tensor.kind == TensorKind::kFp8 ? 1.0 : 2.0);
    const bool routed = tensor.name.find(".experts.") != std::string::npos;
    bytes += routed ? hit * size : size;
  }
  return bytes;
}

double Seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
      .count();
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2,
                   values.end());
  return values[values.size() / 2];
}

// The sum of `bytes` bytes as words, as fast as the processor reads them.
__attribute__((target_clones("avx512f", "avx2", "default"))) uint64_t Sum(
    const std::byte* data, int64_t bytes) {
  using Words [[gnu::vector_size(64)]] = uint64_t;
  constexpr int kStreams = 8;
  Words sums[kStreams] = {};
  const auto* words = reinterpret_cast<const Words*>(data);
  for (int64_t i = 0; i < bytes / 64; i += kStreams) {
    for (int j = 0; j < kStreams; ++j) sums[j] += words[i + j];
  }
  uint64_t sum = 0;
  for (const Words& stream : sums) {
    for (int j = 0; j < 8; ++j) sum += stream[j];
  }
  return sum;
}

// Reads memory in turns with what is measured.
class ReadProbe {
 public:
  explicit ReadProbe(int threads)
      : pool_(threads),
        buffer_(static_cast<std::byte*>(std::aligned_alloc(2 << 20, kBytes)),
                &std::free) {
    madvise(buffer_.get(), kBytes, MADV_HUGEPAGE);
    std::fill_n(buffer_.get(), kBytes, std::byte{1});
  }

  // Bytes a second of the buffer's next kTurn bytes.
  double Read() {
    const std::byte* const turn = buffer_.get() + next_;
    next_ = (next_ + kTurn) % kBytes;
    std::vector<uint64_t> sums(kTurn / kChunk);
    return static_cast<double>(kTurn) / Seconds([&] {
             pool_.ParallelFor(kTurn / kChunk, 1, [&](int64_t b, int64_t e) {
               for (; b < e; ++b) sums[b] = Sum(turn + b * kChunk, kChunk);
             });
             benchmark::DoNotOptimize(sums.data());
           });
  }

 private:
  static constexpr int64_t kBytes = int64_t{1} << 30;
  static constexpr int64_t kTurn = int64_t{1} << 28;
  static constexpr int64_t kChunk = int64_t{1} << 20;

  cpu::ThreadPool pool_;
  const std::unique_ptr<std::byte, void (*)(void*)> buffer_;
  int64_t next_ = 0;
};

// Times `step`, of `tokens` tokens, and reads between its runs.
void Measure(benchmark::State& state, Shape shape, const ModelConfig& config,
             int threads, int64_t tokens, const std::function<void()>& step) {
  std::unique_ptr<ReadProbe> probe;
  if (shape != kEmbeddedFp8) probe = std::make_unique<ReadProbe>(threads);
  std::vector<double> steps;
  std::vector<double> reads;
  for (auto _ : state) {
    steps.push_back(Seconds(step));
    state.SetIterationTime(steps.back());
    if (probe != nullptr) reads.push_back(probe->Read());
  }
  const double bytes = WeightBytes(config, tokens);
  state.SetItemsProcessed(state.iterations() * tokens);
  state.counters["bytes"] = bytes;
  if (probe == nullptr) return;
  state.counters["read"] = Median(reads);
  state.counters["bandwidth"] = bytes / Median(steps) / Median(reads);
}

// One decode step of `sequences` sequences at `context` tokens each, whose
// token, and so whose experts, change from step to step.
void BM_Decode(benchmark::State& state) {
  const auto shape = static_cast<Shape>(state.range(0));
  const int64_t sequences = state.range(1);
  const int threads = static_cast<int>(state.range(2));
  constexpr int64_t kContext = 160;
  Model* const model = LoadModel(shape, threads);
  if (model == nullptr) return state.SkipWithError("no model");
  const int64_t blocks = kContext / kBlockTokens + 1;
  const auto cache = model->NewKvCache(sequences * blocks);
  std::vector<int32_t> ids(model->config().vocab_size);
  std::iota(ids.begin(), ids.end(), 0);
  std::vector<std::vector<int32_t>> tables(sequences);
  for (int64_t s = 0; s < sequences; ++s) {
    tables[s].resize(blocks);
    std::iota(tables[s].begin(), tables[s].end(), s * blocks);
    const SequenceSlice prompt = {
        .token_ids = std::span(ids).first(shape == kEmbeddedFp8 ? kContext : 1),
        .block_ids = tables[s]};
    model->Forward({&prompt, 1}, *cache, {});
  }
  std::vector<float> logits(sequences * model->config().vocab_size);
  int64_t step = 0;
  const auto decode = [&] {
    std::vector<SequenceSlice> slices;
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t id = (++step * 37) % model->config().vocab_size;
      slices.push_back({.token_ids = {&ids[id], 1},
                        .first_position = kContext,
                        .block_ids = tables[s],
                        .logit_rows = 1});
    }
    model->Forward(slices, *cache, logits);
  };
  Measure(state, shape, model->config(), threads, sequences, decode);
}
BENCHMARK(BM_Decode)
    ->ArgNames({"shape", "sequences", "threads"})
    ->ArgsProduct({{kEmbeddedFp8}, {1, 8, 64}, {1, 2}})
    ->ArgsProduct({{kLiteBf16, kLiteFp8}, {1, 8, 64}, {2}})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

// A prompt of `tokens` tokens at once.
void BM_Prefill(benchmark::State& state) {
  const auto shape = static_cast<Shape>(state.range(0));
  const int64_t tokens = state.range(1);
  const int threads = static_cast<int>(state.range(2));
  Model* const model = LoadModel(shape, threads);
  if (model == nullptr) return state.SkipWithError("no model");
  const int64_t blocks = tokens / kBlockTokens + 1;
  const auto cache = model->NewKvCache(blocks);
  std::vector<int32_t> ids(tokens);
  std::iota(ids.begin(), ids.end(), 5);
  std::vector<int32_t> table(blocks);
  std::iota(table.begin(), table.end(), 0);
  const SequenceSlice prompt = {
      .token_ids = ids, .block_ids = table, .logit_rows = 1};
  std::vector<float> logits(model->config().vocab_size);
  Measure(state, shape, model->config(), threads, tokens, [&] {
    model->Forward({&prompt, 1}, *cache, logits);
  });
}
BENCHMARK(BM_Prefill)
    ->ArgNames({"shape", "tokens", "threads"})
    ->ArgsProduct({{kEmbeddedFp8}, {128, 1024}, {1, 2}})
    ->ArgsProduct({{kLiteBf16, kLiteFp8}, {128}, {2}})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace invar

BENCHMARK_MAIN();
