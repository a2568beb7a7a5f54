#include "client/request_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <set>

#include "absl/strings/str_cat.h"
#include "client/fake_server.h"
#include "common/status.h"

namespace invar {
namespace {

std::vector<v1::GenerateRequest> MakeRequests(int count) {
  std::vector<v1::GenerateRequest> requests(count);
  for (int i = 0; i < count; ++i) requests[i].set_text(absl::StrCat(i));
  return requests;
}

PoolOptions Impatient() {
  return {.concurrency = 8,
          .queue_patience = absl::ZeroDuration(),
          .outage_patience = absl::ZeroDuration(),
          .first_pause = absl::Milliseconds(1)};
}

grpc::Status QueueFull() {
  return Error(absl::StatusCode::kResourceExhausted, "QUEUE_FULL",
               "the queue is full")
      .RetryAfter(absl::Milliseconds(1));
}

TEST(RunRequests, AnswersEachOnceWithinTheConcurrency) {
  std::atomic<int> running = 0;
  std::atomic<int> most = 0;
  FakeServer server({.answer = [&](const v1::GenerateRequest& request) {
    const int now = ++running;
    int seen = most;
    while (now > seen && !most.compare_exchange_weak(seen, now)) {
    }
    --running;
    return PromptOf(request);
  }});
  auto client = Client::Connect(server.address());
  ASSERT_TRUE(client.ok());
  std::set<size_t> answered;
  const PoolResult result =
      RunRequests(**client, MakeRequests(100), {.concurrency = 7},
                  [&](size_t index, const v1::GenerateOnceResponse& response) {
                    EXPECT_EQ(response.answers(0).text(), absl::StrCat(index));
                    EXPECT_TRUE(answered.insert(index).second);
                  });
  EXPECT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(answered.size(), 100u);
  EXPECT_LE(most, 7);
  EXPECT_EQ(result.retries, 0);
}

TEST(RunRequests, ComesBackToAFullQueue) {
  // A queue of two for 64 clients: whoever finds it full is refused.
  std::atomic<int> running = 0;
  std::atomic<int> refused = 0;
  FakeServer server({.answer =
                         [&](const v1::GenerateRequest& request) {
                           --running;
                           return PromptOf(request);
                         },
                     .refuse =
                         [&](const v1::GenerateRequest&, int seen) {
                           // Every third, so that the test does not hang on
                           // luck.
                           if (++running > 2 || seen % 3 == 0) {
                             --running;
                             ++refused;
                             return QueueFull();
                           }
                           return grpc::Status();
                         }});
  auto client = Client::Connect(server.address());
  ASSERT_TRUE(client.ok());
  int answered = 0;
  const PoolResult result =
      RunRequests(**client, MakeRequests(200), {.concurrency = 64},
                  [&](size_t, const v1::GenerateOnceResponse&) { ++answered; });
  EXPECT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(answered, 200);
  EXPECT_GE(refused, 67);
  EXPECT_EQ(result.retries, refused);
}

TEST(RunRequests, RetriesWithoutRetryInfo) {
  FakeServer server({.refuse = [](const v1::GenerateRequest&, int seen) {
    return seen < 2 ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone")
                    : grpc::Status();
  }});
  auto client = Client::Connect(server.address());
  ASSERT_TRUE(client.ok());
  int told = 0;
  PoolOptions options{.concurrency = 1,
                      .first_pause = absl::Milliseconds(1),
                      .on_retry = [&](const grpc::Status&) { ++told; }};
  int answered = 0;
  const PoolResult result =
      RunRequests(**client, MakeRequests(1), options,
                  [&](size_t, const v1::GenerateOnceResponse&) { ++answered; });
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(answered, 1);
  EXPECT_EQ(result.retries, 2);
  EXPECT_EQ(told, 2);
}

TEST(RunRequests, LosesPatienceInTheEnd) {
  FakeServer server(
      {.refuse = [](const v1::GenerateRequest&, int) { return QueueFull(); }});
  auto client = Client::Connect(server.address());
  ASSERT_TRUE(client.ok());
  const PoolResult result =
      RunRequests(**client, MakeRequests(3), Impatient(),
                  [](size_t, const v1::GenerateOnceResponse&) { FAIL(); });
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_GE(result.attempts, 1);
}

TEST(RunRequests, EndsAtAnErrorThatNoRetryMends) {
  FakeServer server({.refuse = [](const v1::GenerateRequest& request, int) {
    return PromptOf(request) == "5"
               ? BadField("text", "must not be 5").ToStatus()
               : grpc::Status::OK;
  }});
  auto client = Client::Connect(server.address());
  ASSERT_TRUE(client.ok());
  const PoolResult result =
      RunRequests(**client, MakeRequests(50), {.concurrency = 4},
                  [](size_t, const v1::GenerateOnceResponse&) {});
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(result.index, 5u);
  EXPECT_EQ(result.attempts, 1);
  EXPECT_LT(server.requests().size(), 50u);
}

}  // namespace
}  // namespace invar
