// Tokens a second of a random model in the embedded model's shape.
//
//   build/bin/model_bench
#include <benchmark/benchmark.h>

#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include "worker/model/model.h"
#include "worker/model/testing/random_checkpoint.h"

namespace invar {
namespace {

std::unique_ptr<Model> LoadModel(int threads) {
  const std::string folder =
      std::filesystem::temp_directory_path() / "invar_model_bench";
  const absl::Status written = testing::WriteRandomCheckpoint(
      folder, testing::EmbeddedModelConfig(), /*seed=*/1, /*shards=*/2);
  if (!written.ok()) return nullptr;
  auto model = Model::Load({.path = folder, .threads = threads});
  return model.ok() ? *std::move(model) : nullptr;
}

// One decode step of `sequences` sequences at `context` tokens each.
void BM_Decode(benchmark::State& state) {
  const int64_t sequences = state.range(0);
  const int64_t context = state.range(1);
  const auto model = LoadModel(static_cast<int>(state.range(2)));
  if (model == nullptr) return state.SkipWithError("no model");
  const int64_t blocks = context / kBlockTokens + 1;
  const auto cache = model->NewKvCache(sequences * blocks);
  std::vector<int32_t> ids(context);
  std::iota(ids.begin(), ids.end(), 5);
  std::vector<std::vector<int32_t>> tables(sequences);
  for (int64_t s = 0; s < sequences; ++s) {
    tables[s].resize(blocks);
    std::iota(tables[s].begin(), tables[s].end(), s * blocks);
    const SequenceSlice prompt = {.token_ids = ids, .block_ids = tables[s]};
    model->Forward({&prompt, 1}, *cache, {});
  }
  std::vector<SequenceSlice> slices;
  for (int64_t s = 0; s < sequences; ++s) {
    slices.push_back({.token_ids = {&ids[s], 1},
                      .first_position = context,
                      .block_ids = tables[s],
                      .logit_rows = 1});
  }
  std::vector<float> logits(sequences * model->config().vocab_size);
  for (auto _ : state) model->Forward(slices, *cache, logits);
  state.SetItemsProcessed(state.iterations() * sequences);
}
BENCHMARK(BM_Decode)
    ->ArgNames({"sequences", "context", "threads"})
    ->Args({1, 160, 1})
    ->Args({1, 160, 2})
    ->Args({8, 160, 2})
    ->Args({64, 160, 1})
    ->Args({64, 160, 2})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

// A prompt of `tokens` tokens at once.
void BM_Prefill(benchmark::State& state) {
  const int64_t tokens = state.range(0);
  const auto model = LoadModel(/*threads=*/0);
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
  state.SetItemsProcessed(state.iterations() * tokens);
}
BENCHMARK(BM_Prefill)
    ->ArgName("tokens")
    ->Arg(128)
    ->Arg(1024)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace invar

BENCHMARK_MAIN();
