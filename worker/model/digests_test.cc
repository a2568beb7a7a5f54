#include "worker/model/digests.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "worker/model/testing/random_checkpoint.h"

namespace invar {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

std::vector<std::string> Dump(uint64_t seed, int threads, int64_t chunk,
                              int32_t changed_id = -1) {
  const std::string folder = ::testing::TempDir() + "/digests_test";
  EXPECT_TRUE(
      testing::WriteRandomCheckpoint(folder, testing::TinyModelConfig(), seed)
          .ok());
  auto model = Model::Load({.path = folder, .threads = threads});
  EXPECT_TRUE(model.ok()) << model.status();
  std::vector<int32_t> ids(20);
  std::iota(ids.begin(), ids.end(), 1);
  if (changed_id >= 0) ids[changed_id] = 60;
  return DumpDigests(**model, ids, chunk);
}

TEST(DigestsTest, ChunksAndThreadsDoNotShow) {
  const std::vector<std::string> whole = Dump(1, 1, 20);
  EXPECT_THAT(whole.front(), StartsWith("-1 embedding 0 "));
  EXPECT_THAT(whole.back(), StartsWith("2 lm_head 19 "));
  EXPECT_EQ(FirstDifference(whole, Dump(1, 2, 7)), "");
  EXPECT_EQ(FirstDifference(whole, Dump(1, 1, 1)), "");
}

TEST(DigestsTest, NamesThePlaceOfTheFirstDifference) {
  const std::string difference =
      FirstDifference(Dump(1, 1, 20), Dump(1, 1, 20, /*changed_id=*/13));
  EXPECT_THAT(difference, StartsWith("-1 embedding 13 "));
  EXPECT_THAT(difference, HasSubstr("\n-1 embedding 13 "));
}

TEST(DigestsTest, AMissingLineIsADifference) {
  std::vector<std::string> whole = Dump(1, 1, 20);
  std::vector<std::string> cut(whole.begin(), whole.end() - 1);
  EXPECT_THAT(FirstDifference(whole, cut), HasSubstr("(end)"));
}

}  // namespace
}  // namespace invar
