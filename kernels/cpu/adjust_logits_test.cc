#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/test_values.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

constexpr float kLargest = std::numeric_limits<float>::max();

float Adjusted(float logit, const TokenUse& use, const Penalties& penalties) {
  std::vector<float> logits = {logit};
  AdjustLogits(std::span(&use, 1), penalties, logits);
  return logits[0];
}

TEST(AdjustLogitsTest, EachPartOfTheEquation) {
  const Penalties penalties = {1.5f, 0.25f, 0.5f};
  const TokenUse prompt = {0, 0, true, 0.0f};
  EXPECT_EQ(Adjusted(3.0f, prompt, penalties), 2.0f);
  EXPECT_EQ(Adjusted(-3.0f, prompt, penalties), -4.5f);
  EXPECT_EQ(Adjusted(3.0f, {0, 3, true, 0.0f}, penalties), 0.75f);
  EXPECT_EQ(Adjusted(3.0f, {0, 3, true, 10.0f}, penalties), 10.75f);
  EXPECT_EQ(Adjusted(3.0f, {0, 0, false, -10.0f}, penalties), -7.0f);
  EXPECT_EQ(Adjusted(3.0f, {0, 2, false, 0.0f}, {1.0f, -0.5f, -2.0f}), 6.0f);
}

TEST(AdjustLogitsTest, EachOperationIsRoundedOnce) {
  const auto logits = RandomValues(2000, 3, 20.0);
  const auto biases = RandomValues(2000, 4, 50.0);
  const Penalties penalties = {1.3f, 0.7f, -1.1f};
  for (size_t i = 0; i < logits.size(); ++i) {
    const int32_t count = static_cast<int32_t>(i % 50);
    // In double each single operation on floats is rounded right when it is
    // stored as a float.
    const double first =
        logits[i] > 0 ? logits[i] / double{1.3f} : logits[i] * double{1.3f};
    float expected = static_cast<float>(first);
    if (count > 0) {
      const float frequency = static_cast<float>(double{0.7f} * count);
      expected = static_cast<float>(double{expected} - frequency);
      expected = static_cast<float>(double{expected} - double{-1.1f});
    }
    expected = static_cast<float>(double{expected} + biases[i]);
    ASSERT_EQ(Adjusted(logits[i], {0, count, true, biases[i]}, penalties),
              expected);
  }
}

TEST(AdjustLogitsTest, NeutralParametersLeaveEveryLogit) {
  auto logits = RandomValues(100, 5, 30.0);
  const auto before = logits;
  std::vector<TokenUse> uses;
  for (int32_t id = 0; id < 100; ++id) uses.push_back({id, id, true, 0.0f});
  AdjustLogits(uses, Penalties(), logits);
  EXPECT_EQ(logits, before);
}

TEST(AdjustLogitsTest, OrderAndOtherIdsDoNotShow) {
  const auto raw = RandomValues(60, 6, 10.0);
  std::vector<TokenUse> uses;
  for (int32_t id = 0; id < 60; id += 3) {
    uses.push_back({id, id % 5, true, id * 0.5f});
  }
  const Penalties penalties = {0.8f, 0.3f, 0.1f};
  auto forwards = raw;
  AdjustLogits(uses, penalties, forwards);
  std::reverse(uses.begin(), uses.end());
  auto backwards = raw;
  AdjustLogits(uses, penalties, backwards);
  EXPECT_EQ(forwards, backwards);
  for (int32_t id = 0; id < 60; ++id) {
    if (id % 3 != 0) {
      EXPECT_EQ(forwards[id], raw[id]);
    }
  }
}

TEST(AdjustLogitsTest, TheWorstValuesStayFinite) {
  const float least = std::numeric_limits<float>::denorm_min();
  const TokenUse often = {0, 1 << 24, true, 100.0f};
  EXPECT_EQ(Adjusted(5.0f, often, {least, -2.0f, -2.0f}), kLargest);
  EXPECT_EQ(Adjusted(kLargest, often, {least, -2.0f, -2.0f}), kLargest);
  EXPECT_EQ(Adjusted(-kLargest, {0, 1, true, -100.0f}, {2.0f, 2.0f, 2.0f}),
            -kLargest);
  EXPECT_EQ(Adjusted(0.0f, {0, 0, true, 0.0f}, {least, 0.0f, 0.0f}), 0.0f);
  std::vector<float> logits = {kLargest, 1.0f, kLargest};
  EXPECT_EQ(Sample(logits, 3, {.temperature = 1.0f, .top_k = 1}, 3, 4), 0);
}

}  // namespace
}  // namespace invar::cpu
