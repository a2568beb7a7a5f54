// The self-test finds each way of breaking the contract, and finds nothing
// where it is kept.
#include "client/selftest/selftest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "client/selftest/comparison.h"
#include "client/selftest/dimensions.h"
#include "client/toy_model.h"

namespace invar {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

SelfTest RunAgainst(ToyModel& model) {
  FakeServer server(model.Behaviour());
  auto client = Client::Connect(server.address());
  EXPECT_TRUE(client.ok()) << client.status();
  SelfTest test = RunSelfTest(**client, {}, [](const SelfTestRow&) {});
  EXPECT_TRUE(test.status.ok()) << test.status.error_message();
  return test;
}

// The dimensions in which a bit differs.
std::set<std::string> Differing(const SelfTest& test) {
  std::set<std::string> names;
  for (const SelfTestRow& row : test.rows) {
    EXPECT_EQ(row.differing_bits > 0, !row.first_difference.empty());
    if (row.differing_bits > 0) names.insert(row.dimension);
  }
  return names;
}

TEST(SelfTest, FindsNothingWhereTheContractIsKept) {
  ToyModel model;
  const SelfTest test = RunAgainst(model);
  EXPECT_EQ(test.rows.size(), Dimensions().size());
  EXPECT_TRUE(test.Passed());
  for (const SelfTestRow& row : test.rows) {
    EXPECT_EQ(row.first_difference, "") << row.dimension;
    EXPECT_EQ(row.note, "") << row.dimension;
    EXPECT_GT(row.cells, 0) << row.dimension;
    EXPECT_GT(row.comparisons, 100) << row.dimension;
  }
}

TEST(SelfTest, EachDimensionFindsItsDefect) {
  struct Planted {
    const char* dimension;
    ToyModel::Defect defect;
  };
  const std::vector<Planted> planted = {
      {"concurrency",
       [](const ToySituation& one) {
         return one.in_flight > 1 && one.request.sampling().temperature() == 0;
       }},
      {"sampling",
       [](const ToySituation& one) {
         return one.in_flight > 1 && one.request.sampling().temperature() > 0;
       }},
      {"prompt length",
       [](const ToySituation& one) { return one.prompt_tokens == 257; }},
      {"prefix cache",
       [](const ToySituation& one) { return one.cached_tokens > 0; }},
      {"scoring",
       [](const ToySituation& one) {
         return one.request.stopping().max_tokens() == 0;
       }},
      {"answers",
       [](const ToySituation& one) { return one.request.sampling().n() > 1; }},
      {"stop strings",
       [](const ToySituation& one) {
         return one.request.stopping().stop_strings_size() > 0;
       }},
      {"resume",
       [](const ToySituation& one) {
         return one.request.resume().token_ids_size() > 1;
       }},
      {"output", [](const ToySituation& one) { return one.streamed; }},
      {"output",
       [](const ToySituation& one) {
         return !one.request.output().logprobs() &&
                !one.request.output().prompt_logprobs();
       }},
  };
  std::set<std::string> covered;
  for (const Planted& one : planted) {
    ToyModel model(one.defect);
    const SelfTest test = RunAgainst(model);
    EXPECT_FALSE(test.Passed()) << one.dimension;
    EXPECT_THAT(Differing(test), Contains(one.dimension));
    covered.insert(one.dimension);
  }
  // A new dimension needs a defect that shows it at work.
  for (const Dimension& dimension : Dimensions()) {
    EXPECT_THAT(covered, Contains(dimension.name));
  }
}

TEST(SelfTest, SaysWhichPoolsThereAre) {
  ToyModel model;
  FakeServer server(model.Behaviour());
  auto client = Client::Connect(server.address());
  SelfTestOptions options;
  options.fingerprint = "nobody";
  const SelfTest test =
      RunSelfTest(**client, options, [](const SelfTestRow&) {});
  EXPECT_EQ(test.status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(test.status.error_message(),
              HasSubstr(ToyModel::Numerics().fingerprint()));
}

TEST(Comparison, CountsBitsAndWhatIsMissing) {
  Comparison comparison;
  comparison.Tokens("cell", std::vector<int32_t>{1, 2, 3},
                    std::vector<int32_t>{1, 3});
  EXPECT_EQ(comparison.values(), 3);
  EXPECT_EQ(comparison.differing_bits(), 1 + 32);
  EXPECT_EQ(comparison.first_difference(), "cell: token 1 is 3, not 2");
  comparison.Floats("other", "log-probability", std::vector<float>{-0.0f},
                    std::vector<float>{0.0f});
  EXPECT_EQ(comparison.differing_bits(), 34);
}

}  // namespace
}  // namespace invar
