#include <gtest/gtest.h>

#include "kernels/cpu/test_values.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

// A router whose logits are the first `experts` inputs themselves.
struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Choice Route(const RouterOptions& options, std::vector<float> logits,
             const float* correction = nullptr) {
  ThreadPool pool(1);
  const int64_t columns = 32;
  logits.resize(columns);
  std::vector<float> identity(options.experts * columns, 0.0f);
  for (int64_t e = 0; e < options.experts; ++e) {
    identity[e * columns + e] = 1.0f;
  }
  Choice choice{std::vector<int32_t>(options.top_k),
                std::vector<float>(options.top_k)};
  Router(pool, options, Fp32Weight(identity, options.experts, columns),
         correction, logits.data(), 1, choice.ids.data(),
         choice.weights.data());
  return choice;
}

TEST(RouterTest, GreedyTakesTheBestAndBreaksTiesByTheLowerId) {
  const RouterOptions options = {
      .experts = 5, .top_k = 3, .scaling_factor = 16.0f};
  const Choice choice = Route(options, {0.5f, 2.0f, 1.0f, 2.0f, 1.0f});
  EXPECT_EQ(choice.ids, (std::vector<int32_t>{1, 3, 2}));
  const double sum = std::exp(0.5) + 2 * std::exp(2.0) + 2 * std::exp(1.0);
  const std::vector<double> expected = {16 * std::exp(2.0) / sum,
                                        16 * std::exp(2.0) / sum,
                                        16 * std::exp(1.0) / sum};
  ExpectClose(choice.weights, expected, 1e-6);
}

TEST(RouterTest, GroupLimitedLooksOnlyIntoTheBestGroups) {
  const RouterOptions options = {.method = RouterMethod::kGroupLimitedGreedy,
                                 .experts = 6,
                                 .top_k = 3,
                                 .groups = 3,
                                 .top_groups = 2};
  // Groups (3, 0), (2.9, 2.8), (3, 2.95): the first and third are best.
  const Choice choice = Route(options, {3.0f, 0.0f, 2.9f, 2.8f, 3.0f, 2.95f});
  EXPECT_EQ(choice.ids, (std::vector<int32_t>{0, 4, 5}));
  // A tie between groups goes to the lower one.
  const Choice tied = Route({.method = RouterMethod::kGroupLimitedGreedy,
                             .experts = 6,
                             .top_k = 2,
                             .groups = 3,
                             .top_groups = 1},
                            {1.0f, 0.0f, 2.0f, 0.0f, 2.0f, 1.0f});
  EXPECT_EQ(tied.ids, (std::vector<int32_t>{2, 3}));
}

TEST(RouterTest, CorrectionChoosesAndDoesNotWeigh) {
  const auto sigmoid = [](double x) { return 1.0 / (1.0 + std::exp(-x)); };
  RouterOptions options = {.scoring = RouterScoring::kSigmoid,
                           .method = RouterMethod::kNoauxTc,
                           .experts = 6,
                           .top_k = 2,
                           .groups = 3,
                           .top_groups = 1,
                           .normalise = true,
                           .scaling_factor = 2.5f};
  // By their two best, corrected, the last group leads; by the best alone the
  // first would.
  const float correction[6] = {0, 0, 0, 0, 0.3f, 0};
  const Choice choice =
      Route(options, {2.0f, -9.0f, 0.0f, 0.0f, 0.5f, 1.0f}, correction);
  EXPECT_EQ(choice.ids, (std::vector<int32_t>{4, 5}));
  const double sum = sigmoid(0.5) + sigmoid(1.0);
  ExpectClose(
      choice.weights,
      std::vector<double>{2.5 * sigmoid(0.5) / sum, 2.5 * sigmoid(1.0) / sum},
      1e-6);
  options.normalise = false;
  const Choice plain =
      Route(options, {2.0f, -9.0f, 0.0f, 0.0f, 0.5f, 1.0f}, correction);
  ExpectClose(plain.weights,
              std::vector<double>{2.5 * sigmoid(0.5), 2.5 * sigmoid(1.0)},
              1e-6);
}

TEST(RouterTest, NotANumberIsTheWorstAndIdsStayInRange) {
  const Choice choice =
      Route({.experts = 4, .top_k = 2}, {std::nanf(""), 1.0f, 0.0f, 2.0f});
  for (const int32_t id : choice.ids) {
    EXPECT_GE(id, 0);
    EXPECT_LT(id, 4);
  }
}

}  // namespace
}  // namespace invar::cpu
