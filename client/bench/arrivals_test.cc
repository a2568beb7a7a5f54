#include "client/bench/arrivals.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace invar::bench {
namespace {

TEST(PoissonArrivals, HaveTheMeanAndTheSpreadOfOne) {
  constexpr int kArrivals = 20'000;
  PoissonArrivals arrivals(50, /*seed=*/3);
  absl::Duration last = absl::ZeroDuration();
  double sum = 0;
  double squares = 0;
  for (int i = 0; i < kArrivals; ++i) {
    const absl::Duration now = arrivals.Next();
    ASSERT_GT(now, last);
    const double gap = absl::ToDoubleSeconds(now - last) * 50;
    sum += gap;
    squares += gap * gap;
    last = now;
  }
  // Exponential: mean 1 and mean square 2, here within 4 standard errors.
  EXPECT_NEAR(sum / kArrivals, 1, 4 / std::sqrt(kArrivals));
  EXPECT_NEAR(squares / kArrivals, 2, 4 * std::sqrt(20.0 / kArrivals));
}

TEST(PoissonArrivals, FollowFromTheSeed) {
  PoissonArrivals a(1, 7), b(1, 7), c(1, 8), faster(2, 7);
  const absl::Duration first = a.Next();
  EXPECT_EQ(first, b.Next());
  EXPECT_NE(first, c.Next());
  EXPECT_LT(faster.Next(), first);
}

}  // namespace
}  // namespace invar::bench
