#include "client/bench/workload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"

namespace invar::bench {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(LengthRange, ReadsANumberOrARange) {
  EXPECT_EQ(ParseLengthRange("f", "64:512")->high, 512);
  EXPECT_EQ(ParseLengthRange("f", "7")->low, 7);
  for (const char* bad : {"", "0", "5:4", "1:2:3", "x", ":5", "-1:5"}) {
    EXPECT_FALSE(ParseLengthRange("f", bad).ok()) << bad;
  }
}

TEST(Dataset, ReadsEachKindOfPrompt) {
  const auto entries = ParseDataset(
      "{\"text\": \"a\"}\n\n{\"chat\": \"b\", \"output_tokens\": 3}\n"
      "{\"token_ids\": [5, 6]}\n",
      "f");
  ASSERT_TRUE(entries.ok()) << entries.status();
  WorkloadOptions options;
  options.dataset = *entries;
  const Workload workload(options);
  EXPECT_EQ(workload.Make(0).text(), "a");
  EXPECT_EQ(workload.Make(1).chat().messages(0).content(), "b");
  EXPECT_EQ(workload.Make(1).stopping().max_tokens(), 3);
  EXPECT_THAT(workload.Make(5).token_ids().ids(), ElementsAre(5, 6));
  EXPECT_EQ(workload.Make(-1).token_ids().ids_size(), 2);
}

TEST(Dataset, NamesTheLineThatIsWrong) {
  for (const char* bad :
       {"x", "[]", "{}", "{\"text\": 1}", "{\"text\": \"a\", \"chat\": \"b\"}",
        "{\"token_ids\": [-1]}", "{\"text\": \"a\", \"other\": 1}"}) {
    const auto entries =
        ParseDataset(absl::StrCat("{\"text\": \"a\"}\n", bad), "f.jsonl");
    ASSERT_FALSE(entries.ok()) << bad;
    EXPECT_THAT(std::string(entries.status().message()),
                HasSubstr("f.jsonl line 2"));
  }
  EXPECT_FALSE(ParseDataset("\n", "f").ok());
}

WorkloadOptions Made() {
  WorkloadOptions options;
  options.input_tokens = {10, 20};
  options.output_tokens = {3, 5};
  options.vocab_size = 100;
  return options;
}

TEST(Workload, FollowsFromSeedAndIndexAlone) {
  WorkloadOptions options = Made();
  const Workload a(options), same(options);
  options.seed = 1;
  const Workload other(options);
  bool shortest = false, longest = false;
  for (int64_t i = 199; i >= 0; --i) {
    const v1::GenerateRequest request = a.Make(i);
    EXPECT_EQ(request.SerializeAsString(), same.Make(i).SerializeAsString());
    EXPECT_NE(request.SerializeAsString(), other.Make(i).SerializeAsString());
    EXPECT_NE(request.SerializeAsString(), a.Make(-1 - i).SerializeAsString());
    const int length = request.token_ids().ids_size();
    shortest |= length == 10;
    longest |= length == 20;
    EXPECT_TRUE(length >= 10 && length <= 20) << length;
    EXPECT_GE(request.stopping().max_tokens(), 3);
    EXPECT_LE(request.stopping().max_tokens(), 5);
    EXPECT_TRUE(request.stopping().ignore_eos());
    for (const int32_t id : request.token_ids().ids()) {
      EXPECT_TRUE(id >= 0 && id < 100) << id;
    }
  }
  EXPECT_TRUE(shortest && longest);
}

TEST(Workload, SharesPrefixesWithAShareOfTheRequests) {
  WorkloadOptions options = Made();
  options.prefix_tokens = 8;
  options.prefix_share = 0.25;
  options.prefix_count = 2;
  const Workload workload(options);
  std::map<std::string, int> beginnings;
  for (int i = 0; i < 400; ++i) {
    const v1::GenerateRequest request = workload.Make(i);
    const auto& ids = request.token_ids().ids();
    ++beginnings[std::string(reinterpret_cast<const char*>(ids.data()),
                             8 * sizeof(int32_t))];
  }
  int common = 0, prefixes = 0;
  for (const auto& [beginning, count] : beginnings) {
    if (count == 1) continue;
    ++prefixes;
    common += count;
  }
  EXPECT_EQ(prefixes, 2);
  EXPECT_NEAR(common, 100, 35);  // 4 standard deviations.
}

TEST(Workload, RepeatsEachRequestOncePerPass) {
  WorkloadOptions options = Made();
  for (const int64_t count : {1, 2, 7, 64}) {
    options.distinct = count;
    const Workload workload(options);
    for (int64_t pass = 0; pass < 3; ++pass) {
      std::set<int64_t> seen;
      for (int64_t i = 0; i < count; ++i) {
        seen.insert(workload.DistinctAt(pass * count + i));
      }
      EXPECT_EQ(seen.size(), static_cast<size_t>(count));
      EXPECT_EQ(*seen.begin(), 0);
      EXPECT_EQ(*seen.rbegin(), count - 1);
    }
  }
}

}  // namespace
}  // namespace invar::bench
