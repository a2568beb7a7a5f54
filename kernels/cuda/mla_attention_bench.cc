// Decode attention of one layer, 16 heads: the cached rows' bytes, each read
// once, over the copy bandwidth.
#include <cstdio>
#include <string>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/free_split.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/testing/bench.h"

namespace invar::cuda {
namespace {

constexpr int64_t kHeads = 16;
constexpr int kInputs = 4;  // layers, so that L2 does not hold the cache

void Decode(testing::Bench& bench, KvDtype dtype, const std::string& name,
            int64_t tokens, int64_t context,
            const AttentionSplits& cut = kAttentionSplits,
            const std::string& cut_name = "") {
  const int64_t blocks = context / kBlockTokens;
  const int64_t cache_bytes = tokens * context * kRow * KvElementBytes(dtype);
  std::vector<DeviceBuffer<std::byte>> caches;
  for (int i = 0; i < kInputs; ++i) {
    // 0x35 bytes: finite and no zeros in each of the dtypes.
    caches.push_back(*DeviceBuffer<std::byte>::Allocate(cache_bytes, "caches"));
    Check(FillOnDevice(caches.back().data(), 0x35, cache_bytes), "filling");
  }
  std::vector<int32_t> ids(tokens * blocks);
  std::vector<int32_t> tables(tokens);
  for (int64_t i = 0; i < tokens * blocks; ++i) {
    ids[i] = static_cast<int32_t>(i * 7919 % (tokens * blocks));
  }
  for (int64_t t = 0; t < tokens; ++t) {
    tables[t] = static_cast<int32_t>(t * blocks);
  }
  const std::vector<int32_t> positions(tokens,
                                       static_cast<int32_t>(context - 1));
  std::vector<float> query(tokens * kHeads * kRow);
  for (size_t i = 0; i < query.size(); ++i) {
    query[i] = static_cast<float>(i * 2654435761u % 1000) * 0.001f - 0.5f;
  }
  const auto device_ids = *DeviceBuffer<int32_t>::Upload(ids, "ids");
  const auto device_tables = *DeviceBuffer<int32_t>::Upload(tables, "tables");
  const auto device_positions =
      *DeviceBuffer<int32_t>::Upload(positions, "positions");
  const auto device_query = *DeviceBuffer<float>::Upload(query, "query");
  const auto out =
      *DeviceBuffer<float>::Allocate(tokens * kHeads * kLatent, "out");
  const auto workspace = *DeviceBuffer<float>::Allocate(
      AttentionWorkspaceFloats(tokens, kHeads, context - 1, cut), "workspace");
  const double seconds = bench.Seconds(kInputs, [&](int i) {
    MlaAttention({.stream = bench.stream()},
                 {tokens, device_positions.data(), device_tables.data(),
                  device_ids.data()},
                 context - 1, device_query.data(), kHeads, 0.1147f,
                 {dtype, caches[i].data()}, workspace.data(), out.data(), cut,
                 nullptr);
  });
  const double bytes =
      static_cast<double>(cache_bytes) +
      static_cast<double>(tokens) * kHeads * (kRow + kLatent) * sizeof(float);
  bench.Report(
      "mla_attention decode " + name + " B=" + std::to_string(tokens) +
          " context " + std::to_string(context) + cut_name,
      seconds, bytes,
      2.0 * static_cast<double>(tokens * context * kHeads) * (kRow + kLatent));
}

void Run(testing::Bench& bench) {
  // A split, a tile more than one, eight.
  for (const int64_t context : {1024, 1088, 8192}) {
    for (const int64_t tokens : {1, 8, 16, 32, 64, 128, 256}) {
      Decode(bench, KvDtype::kFp8E4m3, "e4m3", tokens, context);
    }
    Decode(bench, KvDtype::kFp8E5m2, "e5m2", 128, context);
    for (const int64_t tokens : {1, 32, 128}) {
      Decode(bench, KvDtype::kBf16, "bf16", tokens, context);
    }
  }
}

// What FastAttentionSplits chooses among, and what kAttentionSplits may be.
void RunSplits(testing::Bench& bench) {
  for (const int64_t context : {1024, 8192}) {
    for (const int64_t tokens : {1, 8, 32, 64, 128}) {
      const AttentionSplits fast =
          FastAttentionSplits(tokens, kHeads, context - 1);
      std::printf("FAST's choice: splits of %d tiles\n", fast.tiles);
      for (const int64_t split : {256, 512, 1024}) {
        Decode(bench, KvDtype::kFp8E4m3, "e4m3", tokens, context,
               EqualSplits(split), " splits of " + std::to_string(split));
      }
    }
  }
}

// A layer's prompts of one step, and both halves of kv_b beside.
void Prompts(testing::Bench& bench, KvDtype dtype, const std::string& name,
             int64_t prompts, int64_t length,
             const AttentionSplits& cut = kAttentionSplits,
             const std::string& cut_name = "") {
  const int64_t tokens = prompts * length;
  const int64_t blocks = tokens / kBlockTokens;
  const int64_t cache_bytes = tokens * kRow * KvElementBytes(dtype);
  const auto cache = *DeviceBuffer<std::byte>::Allocate(cache_bytes, "cache");
  Check(FillOnDevice(cache.data(), 0x35, cache_bytes), "filling");
  std::vector<int32_t> ids(blocks), tables(tokens), positions(tokens);
  for (int64_t i = 0; i < blocks; ++i) ids[i] = static_cast<int32_t>(i);
  for (int64_t t = 0; t < tokens; ++t) {
    tables[t] = static_cast<int32_t>(t / length * (length / kBlockTokens));
    positions[t] = static_cast<int32_t>(t % length);
  }
  constexpr int64_t kWidth = kNope + kRope;
  std::vector<float> q(tokens * kHeads * kWidth);
  for (size_t i = 0; i < q.size(); ++i) {
    q[i] = static_cast<float>(i * 2654435761u % 1000) * 0.001f - 0.5f;
  }
  const auto device_ids = *DeviceBuffer<int32_t>::Upload(ids, "ids");
  const auto device_tables = *DeviceBuffer<int32_t>::Upload(tables, "tables");
  const auto device_positions =
      *DeviceBuffer<int32_t>::Upload(positions, "positions");
  const auto device_q = *DeviceBuffer<float>::Upload(q, "q");
  const auto angles = *DeviceBuffer<float>::Upload(
      std::vector<float>(length * kRope / 2, 0.7f), "angles");
  const int64_t weight_bytes = kHeads * kLatent * kNope;
  const auto weights =
      *DeviceBuffer<std::byte>::Allocate(weight_bytes, "weights");
  Check(FillOnDevice(weights.data(), 0x35, weight_bytes), "filling");
  const HeadProjection kv_b = {WeightDtype::kFp8E4m3, weights.data(), 0.01f,
                               kHeads};
  const auto queries = *DeviceBuffer<std::byte>::Allocate(
      PackedQueryBytes(tokens, kHeads), "queries");
  const auto latents = *DeviceBuffer<std::byte>::Allocate(
      PackedAttendedBytes(tokens, kHeads), "attended");
  const auto out =
      *DeviceBuffer<std::byte>::Allocate(tokens * kHeads * kValue, "out");
  const auto workspace = *DeviceBuffer<std::byte>::Allocate(
      PromptAttentionBytes(blocks), "workspace");
  const TokenPlaces places = {tokens, device_positions.data(),
                              device_tables.data(), device_ids.data()};
  const PackedQueries packed = PackedQueriesIn(queries.data(), tokens, kHeads);
  const PackedAttended attended =
      PackedAttendedIn(latents.data(), tokens, kHeads);
  const LaunchOptions options = {.stream = bench.stream()};
  const std::string of =
      " of " + std::to_string(prompts) + " x " + std::to_string(length) + " ";
  const double q_bytes = static_cast<double>(device_q.bytes()) +
                         static_cast<double>(queries.bytes());
  const double query_seconds = bench.Seconds(4, [&](int) {
    PromptAbsorbQuery(options, kv_b, places, {angles.data(), angles.data()},
                      device_q.data(), dtype, packed);
  });
  const double seconds = bench.Seconds(4, [&](int) {
    StagePrompts(options, places, blocks, {dtype, cache.data()},
                 workspace.data());
    PromptAttention(options, places, blocks, packed, kv_b, 0.01f,
                    {dtype, cache.data()}, workspace.data(), attended, cut);
  });
  const double value_seconds = bench.Seconds(4, [&](int) {
    PromptAbsorbValue(options, kv_b, tokens, attended,
                      {.data = out.data(), .dtype = WeightDtype::kFp8E4m3});
  });
  bench.Report(
      "mla_attention" + of + name + cut_name, seconds,
      static_cast<double>(cache_bytes + queries.bytes() + latents.bytes()),
      static_cast<double>(tokens * (length + 1) * kHeads) * (kRow + kLatent));
  if (!cut_name.empty()) return;
  const double flop = 2.0 * static_cast<double>(tokens * weight_bytes);
  bench.Report("absorb query" + of + name, query_seconds, q_bytes, flop);
  bench.Report("absorb value" + of + name, value_seconds,
               static_cast<double>(latents.bytes() + out.bytes()), flop);
}

void RunPrompts(testing::Bench& bench) {
  for (const auto& [prompts, length] :
       {std::pair<int64_t, int64_t>{8, 1024}, {1, 8192}}) {
    Prompts(bench, KvDtype::kFp8E4m3, "e4m3", prompts, length);
    Prompts(bench, KvDtype::kFp8E4m3, "e4m3", prompts, length,
            EqualSplits(length), ", unsplit");
    Prompts(bench, KvDtype::kFp8E4m3, "e4m3", prompts, length, EqualSplits(256),
            ", splits of 256");
  }
  Prompts(bench, KvDtype::kBf16, "bf16", 8, 1024);
}

const testing::BenchEntry kEntry("mla_attention", Run);
const testing::BenchEntry kSplitsEntry("attention splits", RunSplits);
const testing::BenchEntry kPromptEntry("prefill attention", RunPrompts);

}  // namespace
}  // namespace invar::cuda
