// Queries that the absorbing product packs, against those that attention rounds
// itself.
#include <cmath>
#include <random>
#include <tuple>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/testing/gpu_test.h"

namespace invar::cuda {
namespace {

using testing::Poisoned;
using testing::SameBits;
using testing::SpreadValues;
using testing::Upload;

// Bytes that are finite numbers, most of them small, in each dtype.
DeviceBuffer<uint8_t> RandomCodes(int64_t bytes, int seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> codes(bytes);
  for (uint8_t& code : codes) code = random() & 0xbf;
  return Upload(codes);
}

class PromptAttentionTest
    : public testing::GpuTestWithParam<std::tuple<WeightDtype, KvDtype>> {};

TEST_P(PromptAttentionTest, PackedQueriesGiveTheBitsOfOthers) {
  const auto [weights, kv] = GetParam();
  constexpr int64_t kWidth = kNope + kRope;
  // Two prompts, one from its middle on, and a sequence of one token.
  struct Run {
    int32_t first;
    int32_t count;
  };
  constexpr Run kRuns[] = {{0, 501}, {70, 133}, {64, 1}};
  std::vector<int32_t> positions, tables, blocks;
  for (const Run& run : kRuns) {
    const auto table = static_cast<int32_t>(blocks.size());
    for (int32_t p = run.first; p < run.first + run.count; ++p) {
      positions.push_back(p);
      tables.push_back(table);
    }
    while ((blocks.size() - table) * kBlockTokens <
           static_cast<size_t>(run.first + run.count)) {
      blocks.push_back(static_cast<int32_t>(blocks.size()));
    }
  }
  const int64_t tokens = static_cast<int64_t>(positions.size());
  const int64_t block_count = static_cast<int64_t>(blocks.size());
  const auto device_positions = Upload(positions);
  const auto device_tables = Upload(tables);
  const auto device_blocks = Upload(blocks);
  const TokenPlaces places = {tokens, device_positions.data(),
                              device_tables.data(), device_blocks.data()};
  const auto cache =
      RandomCodes(block_count * kBlockTokens * kRow * KvElementBytes(kv), 1);
  const KvLayer layer = {kv, reinterpret_cast<std::byte*>(cache.data())};
  const auto cosines = Upload(SpreadValues(1024 * kRope / 2, 2, -3, 0));
  const auto sines = Upload(SpreadValues(1024 * kRope / 2, 3, -3, 0));
  const RopeAngles angles = {cosines.data(), sines.data()};
  for (const int64_t heads : {16, 19, 3}) {
    const auto w =
        RandomCodes(heads * kLatent * kNope * WeightElementBytes(weights), 4);
    const auto inputs = Upload(SpreadValues(heads * kNope, 5, -4, 4));
    const auto rows = Upload(SpreadValues(heads * kLatent, 6, -4, 4));
    const auto q = Upload(SpreadValues(tokens * heads * kWidth, 7, -9, 1));
    const LaunchOptions options = {.stream = stream().get()};
    const auto workspace =
        Poisoned<std::byte>(PromptAttentionBytes(block_count));
    for (const bool scaled : {false, true}) {
      const HeadProjection k = {weights,
                                reinterpret_cast<const std::byte*>(w.data()),
                                0.0125f,
                                heads,
                                scaled ? inputs.data() : nullptr,
                                scaled ? rows.data() : nullptr};
      const auto query = Poisoned<float>(tokens * heads * kRow);
      const auto expected = Poisoned<float>(tokens * heads * kLatent);
      AbsorbQuery(options, k, places, angles, q.data(), query.data());
      PromptAttention(options, places, block_count, query.data(), heads, 1e-3f,
                      layer, workspace.data(), expected.data());
      const auto memory = Poisoned<std::byte>(PackedQueryBytes(tokens, heads));
      const PackedQueries packed =
          PackedQueriesIn(memory.data(), tokens, heads);
      const auto out = Poisoned<float>(tokens * heads * kLatent);
      PromptAbsorbQuery(options, k, places, angles, q.data(), kv, packed);
      PromptAttention(options, places, block_count, packed, heads, 1e-3f, layer,
                      workspace.data(), out.data());
      stream().Synchronize();
      const auto values = expected.Download();
      for (const float value : values) ASSERT_TRUE(std::isfinite(value));
      EXPECT_TRUE(SameBits(out.Download().data(), values.data(), values.size()))
          << heads << " heads" << (scaled ? ", scaled" : "");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Dtypes, PromptAttentionTest,
    ::testing::Combine(::testing::Values(WeightDtype::kFp8E4m3,
                                         WeightDtype::kFp16,
                                         WeightDtype::kBf16),
                       ::testing::ValuesIn(testing::kKvDtypes)));

}  // namespace
}  // namespace invar::cuda
