#include "worker/kv/block_pool.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace invar {
namespace {

TEST(BlocksForTest, RoundsUp) {
  EXPECT_EQ(BlocksFor(0), 0);
  EXPECT_EQ(BlocksFor(1), 1);
  EXPECT_EQ(BlocksFor(64), 1);
  EXPECT_EQ(BlocksFor(65), 2);
}

TEST(BlockPoolTest, HandsOutEachBlockOnce) {
  BlockPool pool(5);
  EXPECT_EQ(pool.available(), 5);
  std::set<int32_t> blocks;
  for (int i = 0; i < 5; ++i) blocks.insert(pool.Take());
  EXPECT_EQ(blocks, (std::set<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(pool.used(), 5);
  EXPECT_EQ(pool.available(), 0);
}

TEST(BlockPoolTest, WhatIsReleasedIsHandedOutAgain) {
  BlockPool pool(2);
  const std::vector<int32_t> taken = {pool.Take(), pool.Take()};
  pool.Release(taken);
  EXPECT_EQ(pool.used(), 0);
  EXPECT_EQ(pool.available(), 2);
  EXPECT_NE(pool.Take(), pool.Take());
}

TEST(BlockPoolDeathTest, TakingMoreThanThereIsAborts) {
  BlockPool pool(1);
  pool.Take();
  EXPECT_DEATH(pool.Take(), "a block is taken where one is available");
}

TEST(BlockPoolDeathTest, GivingBackTwiceAborts) {
  BlockPool pool(2);
  const int32_t block = pool.Take();
  const std::vector<int32_t> twice = {block, block};
  EXPECT_DEATH(pool.Release(twice), "a block given back was taken");
}

}  // namespace
}  // namespace invar
