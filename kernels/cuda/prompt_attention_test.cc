// Attention of prompts, from queries to values, against the kernels of few
// tokens.
#include <algorithm>
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
std::vector<uint8_t> RandomCodes(int64_t bytes, int seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> codes(bytes);
  for (uint8_t& code : codes) code = random() & 0xbf;
  return codes;
}

// Tokens of one sequence.
struct Chunk {
  int32_t first;
  int32_t count;

  int32_t end() const { return first + count; }
};

// A step of chunks, each with a cache of its own whose rows past its last token
// are not numbers.
class Step {
 public:
  Step(const std::vector<Chunk>& chunks, KvDtype kv) : kv_(kv) {
    std::vector<int32_t> positions, tables, blocks;
    for (const Chunk& chunk : chunks) {
      const auto table = static_cast<int32_t>(blocks.size());
      for (int32_t p = chunk.first; p < chunk.end(); ++p) {
        positions.push_back(p);
        tables.push_back(table);
      }
      while ((blocks.size() - table) * kBlockTokens <
             static_cast<size_t>(chunk.end())) {
        blocks.push_back(static_cast<int32_t>(blocks.size()));
      }
      max_position_ = std::max<int64_t>(max_position_, chunk.end() - 1);
    }
    blocks_ = static_cast<int64_t>(blocks.size());
    const int64_t row = kRow * KvElementBytes(kv);
    auto codes = RandomCodes(blocks_ * kBlockTokens * row, 1);
    int64_t begin = 0;
    for (const Chunk& chunk : chunks) {
      const int64_t rows =
          (chunk.end() + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
      std::fill(codes.begin() + (begin + chunk.end()) * row,
                codes.begin() + (begin + rows) * row, 0xff);
      begin += rows;
    }
    positions_ = Upload(positions);
    tables_ = Upload(tables);
    block_ids_ = Upload(blocks);
    cache_ = Upload(codes);
  }

  int64_t tokens() const { return positions_.size(); }
  int64_t blocks() const { return blocks_; }
  int64_t max_position() const { return max_position_; }
  TokenPlaces places() const {
    return {tokens(), positions_.data(), tables_.data(), block_ids_.data()};
  }
  KvLayer layer() const {
    return {kv_, reinterpret_cast<std::byte*>(cache_.data())};
  }

 private:
  KvDtype kv_;
  int64_t blocks_ = 0;
  int64_t max_position_ = 0;
  DeviceBuffer<int32_t> positions_, tables_, block_ids_;
  DeviceBuffer<uint8_t> cache_;
};

class PromptAttentionTest
    : public testing::GpuTestWithParam<std::tuple<WeightDtype, KvDtype>> {
 protected:
  void Compare(const std::vector<Chunk>& chunks, int64_t heads);
};

void PromptAttentionTest::Compare(const std::vector<Chunk>& chunks,
                                  int64_t heads) {
  const auto [weights, kv] = GetParam();
  constexpr int64_t kWidth = kNope + kRope;
  constexpr int64_t kPositions = 3200;
  const auto cosines = Upload(SpreadValues(kPositions * kRope / 2, 2, -3, 0));
  const auto sines = Upload(SpreadValues(kPositions * kRope / 2, 3, -3, 0));
  const RopeAngles angles = {cosines.data(), sines.data()};
  const LaunchOptions options = {.stream = stream().get()};
  const Step step(chunks, kv);
  const int64_t tokens = step.tokens();
  const int64_t bytes = WeightElementBytes(weights);
  const auto up = Upload(RandomCodes(heads * kLatent * kNope * bytes, 4));
  const auto down = Upload(RandomCodes(heads * kLatent * kValue * bytes, 5));
  const auto q = Upload(SpreadValues(tokens * heads * kWidth, 7, -9, 1));
  const auto factors = Upload(SpreadValues(heads * kLatent, 6, -4, 4));
  const auto workspace =
      Poisoned<std::byte>(PromptAttentionBytes(step.blocks()));
  for (const bool scaled : {false, true}) {
    const float* const f = scaled ? factors.data() : nullptr;
    // With large scores a split's maximum can be far above those before.
    const float score_scale = scaled ? 3e3f : 1e-3f;
    const HeadProjection k = {
        weights, reinterpret_cast<const std::byte*>(up.data()),
        0.0125f, heads,
        f,       f};
    const HeadProjection v = {
        weights, reinterpret_cast<const std::byte*>(down.data()),
        0.0125f, heads,
        f,       f};
    const auto query = Poisoned<float>(tokens * heads * kRow);
    const auto attended = Poisoned<float>(tokens * heads * kLatent);
    const auto expected = Poisoned<float>(tokens * heads * kValue);
    const auto parts = Poisoned<float>(
        AttentionWorkspaceFloats(tokens, heads, step.max_position()));
    AbsorbQuery(options, k, step.places(), angles, q.data(), query.data());
    MlaAttention(options, step.places(), step.max_position(), query.data(),
                 heads, score_scale, step.layer(), parts.data(),
                 attended.data());
    AbsorbValue(options, v, tokens, attended.data(), expected.data());

    const auto packed_query =
        Poisoned<std::byte>(PackedQueryBytes(tokens, heads));
    const auto packed_attended =
        Poisoned<std::byte>(PackedAttendedBytes(tokens, heads));
    const auto out = Poisoned<float>(tokens * heads * kValue);
    const PackedQueries q_in =
        PackedQueriesIn(packed_query.data(), tokens, heads);
    const PackedAttended x =
        PackedAttendedIn(packed_attended.data(), tokens, heads);
    PromptAbsorbQuery(options, k, step.places(), angles, q.data(), kv, q_in);
    StagePrompts(options, step.places(), step.blocks(), step.layer(),
                 workspace.data());
    PromptAttention(options, step.places(), step.blocks(), q_in, v, score_scale,
                    step.layer(), workspace.data(), x);
    PromptAbsorbValue(
        options, v, tokens, x,
        InputSink{.data = out.data(), .dtype = WeightDtype::kFp32});
    stream().Synchronize();
    const auto values = expected.Download();
    for (const float value : values) ASSERT_TRUE(std::isfinite(value));
    EXPECT_TRUE(SameBits(out.Download().data(), values.data(), values.size()))
        << tokens << " tokens, " << heads << " heads"
        << (scaled ? ", scaled" : "");
    // And as inputs of an FP8 o_proj; some are clamped, some become zero.
    float largest = 0.0f;
    for (const float value : values) {
      largest = std::max(largest, std::fabs(value));
    }
    const float scale = largest / 900.0f;
    const auto codes = Poisoned<uint8_t>(tokens * heads * kValue);
    const auto expected_codes = Poisoned<uint8_t>(tokens * heads * kValue);
    const auto sink = [&](const DeviceBuffer<uint8_t>& to) {
      return InputSink{
          .data = to.data(), .dtype = WeightDtype::kFp8E4m3, .scale = scale};
    };
    AbsorbValue(options, v, tokens, attended.data(), sink(expected_codes));
    PromptAbsorbValue(options, v, tokens, x, sink(codes));
    stream().Synchronize();
    EXPECT_EQ(codes.Download(), expected_codes.Download())
        << tokens << " tokens, " << heads << " heads"
        << (scaled ? ", scaled" : "");
  }
}

// Chunks that begin and end anywhere, and sequences of one token, four of which
// share a unit; whole groups of heads, and parts.
TEST_P(PromptAttentionTest, ATokenHasTheSameBitsBesideItsNeighbours) {
  const std::vector<Chunk> kSteps[] = {
      {{0, 501}, {70, 133}, {64, 1}},
      {{3, 530}, {258, 7}, {37, 1}, {154, 1}, {271, 1}, {1020, 9}, {2041, 20}},
      {{1041, 59}, {61, 300}, {0, 1}, {1, 2}, {3100, 33}},
  };
  for (const auto& chunks : kSteps) {
    for (const int64_t heads : {16, 19, 3}) Compare(chunks, heads);
  }
}

// As few as compute-sanitizer has patience for.
TEST_P(PromptAttentionTest, SoDoFewTokens) {
  Compare({{20, 33}, {2046, 4}}, 16);
}

INSTANTIATE_TEST_SUITE_P(
    Dtypes, PromptAttentionTest,
    ::testing::Combine(::testing::Values(WeightDtype::kFp8E4m3,
                                         WeightDtype::kFp16,
                                         WeightDtype::kBf16),
                       ::testing::ValuesIn(testing::kKvDtypes)));

}  // namespace
}  // namespace invar::cuda
