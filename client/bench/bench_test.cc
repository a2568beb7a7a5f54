// The arithmetic of the bench, and loads against a server whose answers are
// known. No time is asserted but what was written into a record.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "client/bench/arrivals.h"
#include "client/bench/dataset.h"
#include "client/bench/load.h"
#include "client/bench/report.h"
#include "client/bench/token_server.h"
#include "client/bench/workload.h"
#include "client/client.h"

namespace invar::bench {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

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

TEST(LengthRange, ReadsANumberOrARange) {
  EXPECT_EQ(ParseLengthRange("f", "64:512")->high, 512);
  EXPECT_EQ(ParseLengthRange("f", "7")->low, 7);
  for (const char* bad : {"", "0", "5:4", "1:2:3", "x", ":5", "-1:5"}) {
    EXPECT_FALSE(ParseLengthRange("f", bad).ok()) << bad;
  }
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
    const auto& ids = workload.Make(i).token_ids().ids();
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
