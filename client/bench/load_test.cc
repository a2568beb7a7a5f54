#include "client/bench/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "client/bench/arrivals.h"
#include "client/bench/report.h"
#include "client/bench/token_server.h"
#include "client/client.h"

namespace invar::bench {
namespace {

using std::chrono::milliseconds;

WorkloadOptions Made() {
  WorkloadOptions options;
  options.input_tokens = {10, 20};
  options.output_tokens = {3, 5};
  options.vocab_size = 100;
  return options;
}

class LoadTest : public testing::Test {
 protected:
  LoadResult Run(TokenServerOptions server_options, LoadOptions options,
                 WorkloadOptions workload_options = Made()) {
    const TokenServer server(std::move(server_options));
    const auto channel = ConnectChannel(server.address(), {});
    const auto stub = v1::InferenceService::NewStub(*channel);
    return RunLoad(*stub, Workload(workload_options), options,
                   [](const LoadProgress&) {});
  }
};

TEST_F(LoadTest, SendsEachRequestOnceAndKeepsToItsPlaces) {
  const LoadResult load = Run({}, {.concurrency = 3, .requests = 40});
  ASSERT_EQ(load.records.size(), 40u);
  const Workload workload(Made());
  std::vector<std::pair<Clock::time_point, int>> edges;
  for (int64_t i = 0; i < 40; ++i) {
    const RequestRecord& record = load.records[i];
    const v1::GenerateRequest request = workload.Make(i);
    EXPECT_TRUE(record.status.ok()) << record.status.error_message();
    EXPECT_EQ(record.place, i);
    EXPECT_EQ(record.input_tokens, request.token_ids().ids_size());
    EXPECT_EQ(record.output_tokens, request.stopping().max_tokens());
    EXPECT_EQ(record.gaps.size() + 1, record.output_tokens);
    edges.push_back({record.due, 1});
    edges.push_back({record.ended, -1});
  }
  std::sort(edges.begin(), edges.end());
  int in_flight = 0;
  for (const auto& [when, change] : edges) {
    in_flight += change;
    EXPECT_LE(in_flight, 3);
  }
}

TEST_F(LoadTest, DigestsTheSameForAnyLoopAndGrouping) {
  const auto digest = [&](int32_t tokens_per_event, LoadOptions options) {
    options.requests = 30;
    const LoadResult load =
        Run({.tokens_per_event = tokens_per_event}, options);
    return Summarize(load, {}).digest;
  };
  const std::string closed = digest(1, {.concurrency = 1});
  EXPECT_EQ(closed.size(), 64u);
  EXPECT_EQ(closed, digest(2, {.concurrency = 16}));
  EXPECT_EQ(closed, digest(1, {.concurrency = 0, .rate = 2000}));
  EXPECT_EQ(closed, digest(1, {.concurrency = 2, .rate = 2000}));
}

TEST_F(LoadTest, CountsTokensThatCameTogether) {
  WorkloadOptions workload = Made();
  workload.output_tokens = {5, 5};
  const LoadResult load =
      Run({.tokens_per_event = 2}, {.concurrency = 1, .requests = 1}, workload);
  const RequestRecord& record = load.records[0];
  EXPECT_EQ(record.deltas, 3);
  ASSERT_EQ(record.gaps.size(), 4u);
  EXPECT_EQ(record.gaps[0], 0);
  EXPECT_GT(record.gaps[1], 0);
  EXPECT_EQ(record.gaps[2], 0);
}

TEST_F(LoadTest, CountsAnOpenLoopFromTheArrival) {
  // One place, and a rate far beyond what it can carry: all that waits for it
  // must show in the latencies, however late it was sent.
  const LoadResult load =
      Run({}, {.concurrency = 1, .rate = 1e6, .requests = 50});
  ASSERT_EQ(load.records.size(), 50u);
  PoissonArrivals arrivals(1e6, 0);
  Clock::time_point free_from = load.start;
  for (const RequestRecord& record : load.records) {
    EXPECT_NEAR(absl::ToDoubleNanoseconds(arrivals.Next()),
                std::chrono::nanoseconds(record.due - load.start).count(), 1);
    EXPECT_GE(record.sent, free_from);
    EXPECT_GE(record.first_token,
              std::chrono::duration<float>(record.sent - record.due).count());
    free_from = record.ended;
  }
}

TEST_F(LoadTest, GoesOnAfterAFailure) {
  const LoadResult load = Run(
      {.refuse =
           [](const v1::GenerateRequest&, int64_t number) {
             return number == 1
                        ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "away")
                        : grpc::Status::OK;
           }},
      {.concurrency = 1, .requests = 4});
  const Report report = Summarize(load, {});
  EXPECT_EQ(report.sent, 4);
  EXPECT_EQ(report.succeeded, 3);
  EXPECT_EQ(report.errors.at("UNAVAILABLE"), 1);
}

TEST_F(LoadTest, MistrustsAReceiptThatIsNotOfTheTokens) {
  const LoadResult load = Run({.output_digest = std::string(64, '0')},
                              {.concurrency = 1, .requests = 1});
  EXPECT_EQ(load.records[0].status.error_code(), grpc::StatusCode::DATA_LOSS);
}

TEST_F(LoadTest, BeginsNothingAfterItsDuration) {
  const LoadResult load =
      Run({}, {.concurrency = 2, .duration = absl::Milliseconds(50)});
  EXPECT_GE(load.records.size(), 2u);
  for (const RequestRecord& record : load.records) {
    EXPECT_LT(record.due - load.start, milliseconds(50));
  }
}

}  // namespace
}  // namespace invar::bench
