// Speed of random models: the embedded one's shape, and one dense and one MoE
// layer of DeepSeek-V2-Lite's, whose weights exceed any cache.
//
//   build/bin/model_bench --benchmark_repetitions=5
//
// `bytes` is what a step must read of the weights, counting the experts hit
// (at batch 1 exactly, else their expected number); `bandwidth` that over the
// read bandwidth which as many threads reach over 1 GiB in the same process.
#include <benchmark/benchmark.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <filesystem>
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

// Bytes a second that `threads` threads read, the best of five sweeps.
double ReadBandwidth(int threads) {
  constexpr int64_t kBytes = int64_t{1} << 30;
  constexpr int64_t kChunk = int64_t{1} << 20;
  cpu::ThreadPool pool(threads);
  const std::unique_ptr<uint64_t, void (*)(void*)> buffer(
      static_cast<uint64_t*>(std::aligned_alloc(2 << 20, kBytes)), &std::free);
  madvise(buffer.get(), kBytes, MADV_HUGEPAGE);
  std::fill_n(buffer.get(), kBytes / 8, 1);
  std::vector<uint64_t> sums(kBytes / kChunk);
  double best = 0.0;
  for (int sweep = 0; sweep < 5; ++sweep) {
    const auto start = std::chrono::steady_clock::now();
    pool.ParallelFor(kBytes / kChunk, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const uint64_t* words = buffer.get() + chunk * kChunk / 8;
        uint64_t sum[16] = {};
        for (int64_t i = 0; i < kChunk / 8; i += 16) {
          for (int j = 0; j < 16; ++j) sum[j] += words[i + j];
        }
        sums[chunk] = std::accumulate(sum, sum + 16, uint64_t{0});
      }
    });
    const std::chrono::duration<double> seconds =
        std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(kBytes) / seconds.count());
  }
  benchmark::DoNotOptimize(sums.data());
  return best;
}

void Report(benchmark::State& state, const ModelConfig& config, int threads,
            int64_t tokens) {
  static std::map<int, double> bandwidths;
  double& bandwidth = bandwidths[threads];
  if (bandwidth == 0.0) bandwidth = ReadBandwidth(threads);
  const double bytes = WeightBytes(config, tokens);
  state.SetItemsProcessed(state.iterations() * tokens);
  state.counters["bytes"] = bytes;
  state.counters["bandwidth"] = benchmark::Counter(
      bytes / bandwidth, benchmark::Counter::kIsIterationInvariantRate);
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
  for (auto _ : state) {
    std::vector<SequenceSlice> slices;
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t id = (++step * 37) % model->config().vocab_size;
      slices.push_back({.token_ids = {&ids[id], 1},
                        .first_position = kContext,
                        .block_ids = tables[s],
                        .logit_rows = 1});
    }
    model->Forward(slices, *cache, logits);
  }
  Report(state, model->config(), threads, sequences);
}
BENCHMARK(BM_Decode)
    ->ArgNames({"shape", "sequences", "threads"})
    ->ArgsProduct({{kEmbeddedFp8}, {1, 8, 64}, {1, 2}})
    ->ArgsProduct({{kLiteBf16, kLiteFp8}, {1, 8, 64}, {2}})
    ->UseRealTime()
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
  for (auto _ : state) model->Forward({&prompt, 1}, *cache, logits);
  Report(state, model->config(), threads, tokens);
}
BENCHMARK(BM_Prefill)
    ->ArgNames({"shape", "tokens", "threads"})
    ->ArgsProduct({{kEmbeddedFp8}, {128, 1024}, {1, 2}})
    ->ArgsProduct({{kLiteBf16, kLiteFp8}, {128}, {2}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace invar

BENCHMARK_MAIN();
