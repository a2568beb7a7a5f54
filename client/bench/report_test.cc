#include "client/bench/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace invar::bench {
namespace {

using std::chrono::milliseconds;

constexpr Clock::time_point kStart{std::chrono::hours(1)};

// Due at 0 ms, sent 1 ms later; a first token, further ones after each gap, and
// an end 2 ms after the last.
RequestRecord MakeRecord(int64_t place, int first_ms,
                         std::vector<int> gaps_ms) {
  RequestRecord record;
  record.place = place;
  record.distinct = place;
  record.due = kStart;
  record.sent = kStart + milliseconds(1);
  record.first_token = static_cast<float>(first_ms) / 1e3f;
  int end = first_ms;
  for (const int gap : gaps_ms) {
    record.gaps.push_back(static_cast<float>(gap) / 1e3f);
    end += gap;
  }
  record.ended = kStart + milliseconds(end + 2);
  record.input_tokens = 10;
  record.cached_tokens = 4;
  record.output_tokens = static_cast<int32_t>(gaps_ms.size()) + 1;
  record.deltas = record.output_tokens;
  record.fingerprint = "f";
  record.output_digest = absl::StrCat("digest of ", place);
  return record;
}

LoadResult MakeLoad(std::vector<RequestRecord> records) {
  LoadResult load;
  load.records = std::move(records);
  load.start = kStart;
  load.end = kStart;
  for (const RequestRecord& record : load.records) {
    load.end = std::max(load.end, record.ended);
  }
  return load;
}

TEST(Summarize, CountsWhatSucceededAndWhatDidNot) {
  std::vector<RequestRecord> records = {
      MakeRecord(0, 10, {5, 7}), MakeRecord(1, 30, {6}), MakeRecord(2, 20, {})};
  records[2].status = {grpc::StatusCode::RESOURCE_EXHAUSTED, "queue is full"};
  const Report report = Summarize(MakeLoad(records), {});
  EXPECT_EQ(report.sent, 3);
  EXPECT_EQ(report.succeeded, 2);
  EXPECT_EQ(report.errors.at("RESOURCE_EXHAUSTED"), 1);
  EXPECT_EQ(report.error_examples.at("RESOURCE_EXHAUSTED"), "queue is full");
  EXPECT_EQ(report.input_tokens, 20);
  EXPECT_EQ(report.cached_tokens, 8);
  EXPECT_EQ(report.output_tokens, 5);
  EXPECT_NEAR(report.elapsed, 0.038, 1e-9);
  EXPECT_EQ(report.ttft.count, 2);
  EXPECT_NEAR(report.ttft.max, 0.030, 1e-6);
  EXPECT_EQ(report.itl.count, 3);
  EXPECT_NEAR(report.itl.p50, 0.006, 1e-6);
  EXPECT_EQ(report.tpot.count, 2);
  EXPECT_NEAR(report.tpot.mean, 0.006, 1e-6);
  EXPECT_NEAR(report.e2e.p50, 0.024, 1e-6);
  EXPECT_NEAR(report.send_delay.max, 0.001, 1e-6);
  // Something is missing: no digest that another run could equal.
  EXPECT_EQ(report.digest, "");
}

TEST(Summarize, CountsAnswersWithinTheServiceLevel) {
  const LoadResult load =
      MakeLoad({MakeRecord(0, 10, {5, 7}), MakeRecord(1, 30, {6}),
                MakeRecord(2, 10, {1, 9})});
  const auto good = [&](const char* level) {
    return Summarize(load, {.service_level = *ParseServiceLevel(level)}).good;
  };
  EXPECT_EQ(good("ttft:20"), 2);
  EXPECT_EQ(good("itl:8"), 2);     // The longest gap counts,
  EXPECT_EQ(good("tpot:5.5"), 1);  // or their mean.
  EXPECT_EQ(good("e2e:23"), 1);
  EXPECT_EQ(good("ttft:20,itl:8"), 1);
  EXPECT_EQ(Summarize(load, {}).good, 0);
}

TEST(Summarize, MeasuresTheFullLoadApart) {
  // Two places: filled from 20 ms on; the third request is the last to be
  // sent, at 31 ms, and the second ends first after that, at 62 ms.
  RequestRecord third = MakeRecord(2, 10, {50, 50});
  third.due = kStart + milliseconds(30);
  third.sent = kStart + milliseconds(31);
  third.ended += milliseconds(30);
  const LoadResult load =
      MakeLoad({MakeRecord(0, 10, {15}), MakeRecord(1, 20, {20, 20}), third});
  const Report report = Summarize(load, {.concurrency = 2});
  // Within (20, 62] ms: tokens at 25, 40, 60 and 40.
  ASSERT_TRUE(report.full_output_tokens_per_second.has_value());
  EXPECT_NEAR(*report.full_output_tokens_per_second, 4 / 0.042, 0.01);
  EXPECT_FALSE(Summarize(load, {}).full_output_tokens_per_second.has_value());
  EXPECT_FALSE(Summarize(load, {.concurrency = 4})
                   .full_output_tokens_per_second.has_value());
}

TEST(Summarize, FindsTheFirstTokenThatDiffers) {
  std::vector<RequestRecord> records = {
      MakeRecord(0, 1, {1, 1}), MakeRecord(1, 1, {1, 1}),
      MakeRecord(2, 1, {1, 1}), MakeRecord(3, 1, {1, 1})};
  records[2].distinct = 0;
  records[3].distinct = 1;
  for (RequestRecord& record : records) {
    record.output_digest = "same";
    record.token_ids = {7, 8, 9};
    record.logprobs = {-1, 0.0f, -2};
  }
  const ReportOptions options{.check_determinism = true};
  const auto check = [&] {
    return *Summarize(MakeLoad(records), options).determinism;
  };
  EXPECT_EQ(check().requests, 2);
  EXPECT_EQ(check().answers, 4);
  EXPECT_TRUE(check().differences.empty());

  records[3].logprobs[1] = -0.0f;  // Equal as a number, not as bits.
  ASSERT_EQ(check().differences.size(), 1u);
  EXPECT_EQ(check().differences[0].distinct, 1);
  EXPECT_EQ(check().differences[0].place_b, 3);
  EXPECT_EQ(check().differences[0].token, 1);

  records[2].token_ids = {7, 8};
  EXPECT_EQ(check().differences[0].token, 2);

  records[2].token_ids = records[0].token_ids;
  records[2].output_digest = "other";
  EXPECT_EQ(check().differences[0].distinct, 0);
  EXPECT_FALSE(check().differences[0].token.has_value());
}

TEST(ServiceLevel, ReadsItsBounds) {
  const auto level = ParseServiceLevel("ttft:200,itl:0.5");
  EXPECT_EQ(*level->ttft_ms, 200);
  EXPECT_EQ(*level->itl_ms, 0.5);
  EXPECT_FALSE(level->e2e_ms.has_value());
  for (const char* bad : {"", "ttft", "ttft:-1", "latency:5", "itl:1:2"}) {
    EXPECT_FALSE(ParseServiceLevel(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace invar::bench
