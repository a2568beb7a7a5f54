#include "client/bench/statistics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace invar::bench {
namespace {

TEST(Percentile, IsTheNearestRank) {
  std::vector<float> values;
  for (int i = 1; i <= 200; ++i) values.push_back(i);
  EXPECT_EQ(Percentile(values, 50), 100);
  EXPECT_EQ(Percentile(values, 99), 198);
  EXPECT_EQ(Percentile(values, 100), 200);
  EXPECT_EQ(Percentile({4}, 1), 4);
  EXPECT_EQ(Percentile({1, 2, 3}, 50), 2);
  EXPECT_EQ(Percentile({1, 2, 3}, 67), 3);
}

TEST(Describe, SortsAndAverages) {
  const Distribution one = Describe({3, 1, 2, 10});
  EXPECT_EQ(one.count, 4);
  EXPECT_EQ(one.mean, 4);
  EXPECT_EQ(one.p50, 2);
  EXPECT_EQ(one.p90, 10);
  EXPECT_EQ(one.max, 10);
  EXPECT_EQ(Describe({}).count, 0);
}

}  // namespace
}  // namespace invar::bench
