#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <set>

#include "kernels/cpu/philox.h"
#include "kernels/cpu/test_values.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(PhiloxTest, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                       {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(ArgmaxTest, HighestLogitThenLowestIdBelowTheLimit) {
  std::vector<float> logits(100, 0.0f);
  logits[70] = 5.0f;
  logits[40] = 5.0f;
  logits[90] = 9.0f;
  EXPECT_EQ(Argmax(logits, 100), 90);
  EXPECT_EQ(Argmax(logits, 90), 40);
  EXPECT_EQ(Argmax(logits, 40), 0);
  logits[99] = 9.0f;
  logits[3] = -kInfinity;
  EXPECT_EQ(Argmax(logits, 100), 90);
  EXPECT_EQ(Argmax(std::vector<float>(20, -kInfinity), 20), 0);
}

TEST(LogProbTest, MatchesDoublePrecision) {
  for (const int64_t size : {1, 15, 70, 4096, 5000}) {
    const auto logits = RandomValues(size, 1, 30.0);
    double sum = 0.0;
    for (const float logit : logits) sum += std::exp(logit - 30.0);
    const double expected = 30.0 + std::log(sum);
    const double log_sum_exp = LogSumExp(logits);
    EXPECT_NEAR(log_sum_exp, expected, 2e-6);
    EXPECT_FLOAT_EQ(LogProb(logits, log_sum_exp, 0),
                    static_cast<float>(logits[0] - log_sum_exp));
  }
}

TEST(LogProbTest, AllFiniteSeesTheLastElement) {
  std::vector<float> logits(35, 1.0f);
  EXPECT_TRUE(AllFinite(logits));
  logits[34] = kInfinity;
  EXPECT_FALSE(AllFinite(logits));
  logits[34] = std::nanf("");
  EXPECT_FALSE(AllFinite(logits));
}

// Shares of each id over many seeds.
std::vector<double> Shares(const std::vector<float>& logits, int64_t limit,
                           const SamplingParameters& parameters) {
  constexpr int kDraws = 20000;
  std::vector<double> shares(logits.size());
  for (int seed = 0; seed < kDraws; ++seed) {
    shares[Sample(logits, limit, parameters, seed, 17)] += 1.0 / kDraws;
  }
  return shares;
}

TEST(SampleTest, FollowsTheSoftmaxAtTheTemperature) {
  const std::vector<float> logits = {0.0f, 1.0f, -1.0f, 2.0f, 0.5f, 9.0f};
  for (const float temperature : {0.5f, 1.0f, 3.0f}) {
    const auto shares = Shares(logits, 5, {.temperature = temperature});
    double sum = 0.0;
    for (int i = 0; i < 5; ++i) sum += std::exp(logits[i] / temperature);
    for (int i = 0; i < 5; ++i) {
      EXPECT_NEAR(shares[i], std::exp(logits[i] / temperature) / sum, 0.015);
    }
    EXPECT_EQ(shares[5], 0.0);  // past the limit
  }
}

std::set<int> Support(const std::vector<float>& logits,
                      const SamplingParameters& parameters) {
  const auto shares =
      Shares(logits, static_cast<int64_t>(logits.size()), parameters);
  std::set<int> support;
  for (size_t i = 0; i < shares.size(); ++i) {
    if (shares[i] > 0) support.insert(static_cast<int>(i));
  }
  return support;
}

TEST(SampleTest, TopKTopPAndMinPKeepWhatTheySay) {
  const float ln2 = 0.6931472f;
  // Probabilities 1/8, 1/2, 1/8, 1/4.
  const std::vector<float> logits = {-2 * ln2, 0, -2 * ln2, -ln2};
  using Ids = std::set<int>;
  EXPECT_EQ(Support(logits, {.temperature = 1}), (Ids{0, 1, 2, 3}));
  EXPECT_EQ(Support(logits, {.temperature = 1, .top_k = 1}), (Ids{1}));
  // Third place is a tie: the lower id has it.
  EXPECT_EQ(Support(logits, {.temperature = 1, .top_k = 3}), (Ids{0, 1, 3}));
  EXPECT_EQ(Support(logits, {.temperature = 1, .top_k = 99}),
            (Ids{0, 1, 2, 3}));
  EXPECT_EQ(Support(logits, {.temperature = 1, .top_p = 0.45f}), (Ids{1}));
  EXPECT_EQ(Support(logits, {.temperature = 1, .top_p = 0.7f}), (Ids{1, 3}));
  EXPECT_EQ(Support(logits, {.temperature = 1, .top_p = 0.8f}), (Ids{0, 1, 3}));
  EXPECT_EQ(Support(logits, {.temperature = 1, .min_p = 0.4f}), (Ids{1, 3}));
  EXPECT_EQ(Support(logits, {.temperature = 1, .min_p = 1.0f}), (Ids{1}));
  // top-p looks at what top-k left: 1/2 and 1/4 of 3/4.
  EXPECT_EQ(Support(logits, {.temperature = 1, .top_k = 2, .top_p = 0.6f}),
            (Ids{1}));
}

TEST(SampleTest, DependsOnSeedAndPositionAlone) {
  const auto logits = RandomValues(500, 1, 2.0);
  const SamplingParameters parameters = {.temperature = 1};
  const int32_t once = Sample(logits, 500, parameters, 5, 9);
  EXPECT_EQ(Sample(logits, 500, parameters, 5, 9), once);
  std::set<int32_t> positions;
  std::set<int32_t> seeds;
  for (uint64_t i = 0; i < 50; ++i) {
    positions.insert(Sample(logits, 500, parameters, 5, i << 32));
    seeds.insert(Sample(logits, 500, parameters, i << 32, 9));
  }
  EXPECT_GT(positions.size(), 20u);
  EXPECT_GT(seeds.size(), 20u);
}

TEST(SampleTest, ParametersThatKeepEverythingChooseTheSameToken) {
  const auto logits = RandomValues(300, 1, 2.0);
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const int32_t plain = Sample(logits, 300, {.temperature = 1}, seed, 1);
    EXPECT_EQ(Sample(logits, 300, {.temperature = 1, .top_k = 300}, seed, 1),
              plain);
    EXPECT_EQ(Sample(logits, 300, {.temperature = 1, .min_p = 1e-9f}, seed, 1),
              plain);
  }
}

TEST(SampleTest, ZeroTemperatureAndHopelessLogitsAreGreedy) {
  const std::vector<float> logits = {1.0f, 3.0f, -kInfinity};
  EXPECT_EQ(Sample(logits, 3, {}, 1, 1), 1);
  EXPECT_EQ(Sample(logits, 3, {.temperature = 1e-30f}, 1, 1), 1);
  EXPECT_EQ(
      Sample(std::vector<float>(4, -kInfinity), 4, {.temperature = 1}, 1, 1),
      0);
  EXPECT_EQ(Sample(std::vector<float>(4, std::nanf("")), 4,
                   {.temperature = 1, .top_k = 2, .top_p = 0.5f}, 1, 1),
            0);
}

}  // namespace
}  // namespace invar::cpu
