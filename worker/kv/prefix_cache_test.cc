#include "worker/kv/prefix_cache.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "common/digest.h"
#include "worker/kv/block_pool.h"

namespace invar {
namespace {

std::vector<int32_t> Text(int64_t tokens, int32_t first = 0) {
  std::vector<int32_t> ids(tokens);
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

std::span<const int32_t> BlockOf(const std::vector<int32_t>& text, int64_t i) {
  return std::span(text).subspan(i * kBlockTokens, kBlockTokens);
}

// Every text has one name: only the ids and the parent tell blocks apart.
std::string OneName(absl::string_view, std::span<const int32_t>) {
  return "same";
}

// Writes the whole blocks of `text` as a sequence would and shares them.
// Returns the blocks it holds then.
std::vector<int32_t> WriteAndShare(BlockPool* pool,
                                   const std::vector<int32_t>& text) {
  std::vector<int32_t> blocks = pool->TakePrefix(text);
  const int64_t full = static_cast<int64_t>(text.size()) / kBlockTokens;
  for (int64_t i = static_cast<int64_t>(blocks.size()); i < full; ++i) {
    const int32_t parent = i == 0 ? kNoBlock : blocks[i - 1];
    blocks.push_back(pool->Share(pool->Take(), parent, BlockOf(text, i)));
  }
  return blocks;
}

// A sequence that came, wrote `text`, and left.
void Visit(BlockPool* pool, const std::vector<int32_t>& text) {
  pool->Release(WriteAndShare(pool, text));
}

int64_t HitBlocks(BlockPool* pool, const std::vector<int32_t>& text) {
  const std::vector<int32_t> hit = pool->TakePrefix(text);
  pool->Release(hit);
  return static_cast<int64_t>(hit.size());
}

TEST(PrefixCacheTest, NamesAreAChainOfHashes) {
  const std::vector<int32_t> text = Text(128);
  const std::string first = PrefixCache::ChainName("", BlockOf(text, 0));
  EXPECT_EQ(first.size(), 32u);
  Sha256 hash;
  hash.Update({reinterpret_cast<const char*>(text.data()), 256});
  EXPECT_EQ(first, hash.Digest());
  const std::string second = PrefixCache::ChainName(first, BlockOf(text, 1));
  EXPECT_NE(second, PrefixCache::ChainName("", BlockOf(text, 1)));
  EXPECT_NE(second, PrefixCache::ChainName(second, BlockOf(text, 1)));
}

TEST(PrefixCacheTest, ABlockIsFoundBehindItsParentOnly) {
  PrefixCache cache(4);
  const std::vector<int32_t> text = Text(128);
  EXPECT_EQ(cache.Add(2, kNoBlock, BlockOf(text, 0)), 2);
  EXPECT_EQ(cache.Add(0, 2, BlockOf(text, 1)), 0);
  EXPECT_EQ(cache.Find(kNoBlock, BlockOf(text, 0)), 2);
  EXPECT_EQ(cache.Find(2, BlockOf(text, 1)), 0);
  EXPECT_EQ(cache.Find(kNoBlock, BlockOf(text, 1)), kNoBlock);
  // The text that is there already keeps its block.
  EXPECT_EQ(cache.Add(3, 2, BlockOf(text, 1)), 0);
  EXPECT_FALSE(cache.contains(3));
}

TEST(PrefixCacheTest, ACollisionIsNoHit) {
  PrefixCache cache(4, OneName);
  const std::vector<int32_t> text = Text(128);
  EXPECT_EQ(cache.Add(1, kNoBlock, BlockOf(text, 0)), 1);
  EXPECT_EQ(cache.Find(kNoBlock, BlockOf(text, 1)), kNoBlock);  // other ids
  EXPECT_EQ(cache.Find(1, BlockOf(text, 0)), kNoBlock);  // another parent
  EXPECT_EQ(cache.Add(2, kNoBlock, BlockOf(text, 1)), kNoBlock);
  EXPECT_EQ(cache.Find(kNoBlock, BlockOf(text, 0)), 1);
}

TEST(PrefixCacheTest, TheOneParkedLongestIsEvicted) {
  PrefixCache cache(3);
  for (int32_t block = 0; block < 3; ++block) {
    cache.Add(block, kNoBlock, Text(64, block));
    cache.Park(block);
  }
  cache.Unpark(0);
  cache.Park(0);
  EXPECT_EQ(cache.EvictOldest(), 1);
  EXPECT_EQ(cache.Find(kNoBlock, Text(64, 1)), kNoBlock);
  EXPECT_EQ(cache.EvictOldest(), 2);
  EXPECT_EQ(cache.EvictOldest(), 0);
  EXPECT_EQ(cache.parked(), 0);
}

TEST(SharedBlocksTest, AHitEndsBeforeTheBlockOfTheLastToken) {
  BlockPool pool(8);
  Visit(&pool, Text(256));
  EXPECT_EQ(pool.used(), 0);
  EXPECT_EQ(pool.cached(), 4);
  EXPECT_EQ(HitBlocks(&pool, Text(1)), 0);
  EXPECT_EQ(HitBlocks(&pool, Text(63)), 0);
  EXPECT_EQ(HitBlocks(&pool, Text(64)), 0);
  EXPECT_EQ(HitBlocks(&pool, Text(65)), 1);
  EXPECT_EQ(HitBlocks(&pool, Text(128)), 1);
  EXPECT_EQ(HitBlocks(&pool, Text(129)), 2);
  EXPECT_EQ(HitBlocks(&pool, Text(400)), 4);
  EXPECT_EQ(HitBlocks(&pool, Text(129, 1)), 0);
}

TEST(SharedBlocksTest, AHitEndsWhereTheTextsPart) {
  BlockPool pool(8);
  Visit(&pool, Text(256));
  std::vector<int32_t> other = Text(256);
  other[130] = 7;
  EXPECT_EQ(HitBlocks(&pool, other), 2);
}

TEST(SharedBlocksTest, ReadersShareAndTheLastOneParks) {
  BlockPool pool(8);
  const std::vector<int32_t> text = Text(130);
  const std::vector<int32_t> first = WriteAndShare(&pool, text);
  const std::vector<int32_t> second = WriteAndShare(&pool, text);
  EXPECT_EQ(first, second);
  EXPECT_EQ(pool.used(), 2);
  EXPECT_NE(pool.Take(), first[0]);
  pool.Release(first);
  EXPECT_EQ(pool.used(), 3);
  EXPECT_EQ(pool.cached(), 0);
  pool.Release(second);
  EXPECT_EQ(pool.cached(), 2);
}

TEST(SharedBlocksTest, OfTwoThatWroteTheSameTextOneBlockStays) {
  BlockPool pool(4);
  const std::vector<int32_t> text = Text(64);
  const int32_t mine = pool.Take();
  const int32_t yours = pool.Take();
  EXPECT_EQ(pool.Share(mine, kNoBlock, text), mine);
  EXPECT_EQ(pool.Share(yours, kNoBlock, text), mine);
  EXPECT_EQ(pool.used(), 1);
  pool.Release(std::vector<int32_t>{mine});
  pool.Release(std::vector<int32_t>{mine});
  EXPECT_EQ(pool.used(), 0);
  EXPECT_EQ(pool.cached(), 1);
}

TEST(SharedBlocksTest, CachedBlocksAreAvailableAndGoOldestAndDeepestFirst) {
  BlockPool pool(4);
  Visit(&pool, Text(128));
  Visit(&pool, Text(128, 1000));
  EXPECT_EQ(pool.cached(), 4);
  EXPECT_EQ(pool.available(), 4);
  EXPECT_EQ(HitBlocks(&pool, Text(129)), 2);  // The older text, read again.
  const std::vector<int32_t> one = {pool.Take()};
  EXPECT_EQ(pool.cached(), 3);
  pool.Release(one);
  EXPECT_EQ(HitBlocks(&pool, Text(129, 1000)), 1);
  EXPECT_EQ(HitBlocks(&pool, Text(129)), 2);
  // All of them on demand.
  for (int i = 0; i < 4; ++i) pool.Take();
  EXPECT_EQ(pool.cached(), 0);
  EXPECT_EQ(pool.used(), 4);
}

TEST(SharedBlocksTest, ACollisionSharesNothing) {
  BlockPool pool(4, OneName);
  Visit(&pool, Text(64));
  const int32_t block = pool.Take();
  EXPECT_EQ(pool.Share(block, kNoBlock, Text(64, 1)), kNoBlock);
  pool.Release(std::vector<int32_t>{block});
  EXPECT_EQ(pool.cached(), 1);
  EXPECT_EQ(HitBlocks(&pool, Text(65, 1)), 0);
}

TEST(SharedBlocksDeathTest, APartOfABlockIsNotShared) {
  BlockPool pool(2);
  const int32_t block = pool.Take();
  EXPECT_DEATH(pool.Share(block, kNoBlock, Text(63)), "shared block is full");
}

TEST(SharedBlocksDeathTest, WritingToASharedBlockAborts) {
  BlockPool pool(2);
  const int32_t block = pool.Take();
  pool.AssertWritable(block);
  pool.Share(block, kNoBlock, Text(64));
  EXPECT_DEATH(pool.AssertWritable(block), "written before it is shared");
}

}  // namespace
}  // namespace invar
