// A stream that breaks, at every place it can, gives what an unbroken one does.
#include "client/resume.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/client.h"
#include "client/fake_server.h"
#include "client/retry.h"
#include "common/status.h"
#include "google/protobuf/util/message_differencer.h"

namespace invar {
namespace {

using google::protobuf::util::MessageDifferencer;
using ::testing::ElementsAre;

constexpr int kNever = 1 << 20;

v1::GenerateRequest MakeRequest(int n) {
  v1::GenerateRequest request;
  request.set_text("hello");
  request.set_request_id("mine");
  request.mutable_output()->set_logprobs(true);
  request.mutable_output()->set_prompt_logprobs(true);
  request.mutable_sampling()->set_n(n);
  return request;
}

struct Outcome {
  grpc::Status status;
  v1::GenerateOnceResponse whole;
  GenerateMetadata metadata;
};

Outcome Stream(Client& client, const v1::GenerateRequest& request,
               const CallOptions& options = {}) {
  Outcome outcome;
  outcome.status = client.Generate(
      request, options,
      [&](const v1::GenerateResponse& event) {
        AddEvent(event, outcome.whole);
        return true;
      },
      &outcome.metadata);
  return outcome;
}

std::unique_ptr<Client> ConnectTo(const std::string& addresses) {
  auto client = Client::Connect(addresses);
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

TEST(Resume, BreaksAtEveryEventAndGivesTheUnbrokenStream) {
  for (const int n : {1, 3}) {
    FakeServer unbroken({});
    const Outcome expected =
        Stream(*ConnectTo(unbroken.address()), MakeRequest(n));
    ASSERT_TRUE(expected.status.ok());
    EXPECT_EQ(expected.whole.answers(0).text(), "echo: hello");
    const int events = 2 + 12 * n + 1;
    for (int at = 0; at < events; ++at) {
      // The second stream breaks, too, after what is new in it.
      FakeServer server({.breaks = [at](const v1::GenerateRequest&, int seen) {
        return seen == 0 ? at : seen == 1 ? at + 2 : kNever;
      }});
      const Outcome outcome =
          Stream(*ConnectTo(server.address()), MakeRequest(n));
      ASSERT_TRUE(outcome.status.ok()) << outcome.status.error_message();
      EXPECT_TRUE(MessageDifferencer::Equals(outcome.whole, expected.whole))
          << "broken at " << at << " of " << events << ", n " << n << ":\n"
          << outcome.whole.DebugString();
      EXPECT_GE(outcome.metadata.resumes, 1);
    }
  }
}

TEST(Resume, GoesOnElsewhereWithTheTokensAndTheFingerprint) {
  FakeServer first({.breaks = [](const v1::GenerateRequest&, int) {
    return 5;  // two pages and three tokens
  }});
  FakeServer second({});
  const auto client = ConnectTo(first.address() + "," + second.address());
  ASSERT_TRUE(Stream(*client, MakeRequest(1)).status.ok());
  ASSERT_EQ(second.requests().size(), 1u);
  const v1::GenerateRequest resumed = second.requests()[0];
  EXPECT_THAT(resumed.resume().token_ids(), ElementsAre('e', 'c', 'h'));
  EXPECT_EQ(resumed.resume().expected_fingerprint(), "f00d");
  EXPECT_EQ(resumed.request_id(), "mine");
  EXPECT_FALSE(resumed.output().prompt_logprobs());
  // Later calls stay with the one that answers.
  ASSERT_TRUE(Stream(*client, MakeRequest(1)).status.ok());
  EXPECT_EQ(second.requests().size(), 2u);
}

TEST(Resume, EndsWhereTheServerSaysThatItCannotGoOn) {
  FakeServer server(
      {.refuse =
           [](const v1::GenerateRequest&, int seen) {
             return seen == 0 ? grpc::Status::OK
                              : Error(absl::StatusCode::kFailedPrecondition,
                                      "NO_SUCH_FINGERPRINT", "no")
                                    .ToStatus();
           },
       .breaks = [](const v1::GenerateRequest&, int) { return 4; }});
  const Outcome outcome = Stream(*ConnectTo(server.address()), MakeRequest(1));
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(server.requests().size(), 2u);
}

TEST(Resume, AnAnswerThatDiffersIsNotPatchedTogether) {
  FakeServer first(
      {.breaks = [](const v1::GenerateRequest&, int) { return 6; }});
  FakeServer second(
      {.answer = [](const v1::GenerateRequest&) { return "other"; }});
  const Outcome outcome = Stream(
      *ConnectTo(first.address() + "," + second.address()), MakeRequest(2));
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_EQ(ErrorReason(outcome.status), "RESUME_DIFFERS");
}

TEST(Resume, AServerThatGoesAwayIsNoNewsToTheCaller) {
  auto first = std::make_unique<FakeServer>(FakeBehaviour{});
  FakeServer second({});
  const auto client = ConnectTo(first->address() + "," + second.address());
  ASSERT_TRUE(Stream(*client, MakeRequest(1)).status.ok());
  first.reset();
  EXPECT_TRUE(Stream(*client, MakeRequest(1)).status.ok());
  v1::GenerateOnceResponse response;
  EXPECT_TRUE(client->GenerateOnce(MakeRequest(1), {}, &response).ok());
  EXPECT_EQ(second.requests().size(), 2u);
}

class RetryTest : public ::testing::Test {
 protected:
  static grpc::Status Broken() {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "socket closed");
  }
  static grpc::Status NoWorker() {
    return Error(absl::StatusCode::kUnavailable, "NO_WORKER", "none")
        .RetryAfter(absl::Seconds(1));
  }
  const absl::Time start_ = absl::UnixEpoch();
};

TEST_F(RetryTest, PausesGrowAndEndWithThePatience) {
  RetryPolicy retry({.patience = absl::Seconds(30)});
  absl::Time now = start_;
  absl::Duration last;
  int tries = 0;
  while (const auto pause = retry.AfterFailure(Broken(), now)) {
    if (tries++ < 5) {
      EXPECT_GT(*pause, last * 0.9);
    }
    EXPECT_LE(*pause, absl::Seconds(2));
    last = *pause;
    now += *pause;
  }
  EXPECT_GE(now, start_ + absl::Seconds(30));
  EXPECT_GT(tries, 10);
  // News begin a new patience.
  retry.OnNews();
  EXPECT_LE(*retry.AfterFailure(Broken(), now), absl::Milliseconds(50));
}

TEST_F(RetryTest, ARefusalIsTheCallersUnlessTheCallHadBegun) {
  RetryPolicy fresh({.servers = 2});
  EXPECT_EQ(fresh.AfterFailure(NoWorker(), start_), absl::ZeroDuration());
  EXPECT_FALSE(fresh.AfterFailure(NoWorker(), start_).has_value());
  RetryPolicy begun({});
  ASSERT_TRUE(begun.AfterFailure(Broken(), start_).has_value());
  EXPECT_GE(*begun.AfterFailure(NoWorker(), start_), absl::Seconds(1));
  const grpc::Status wrong = BadField("model", "is not served");
  EXPECT_FALSE(begun.AfterFailure(wrong, start_).has_value());
  const grpc::Status late(grpc::StatusCode::DEADLINE_EXCEEDED, "late");
  EXPECT_FALSE(begun.AfterFailure(late, start_).has_value());
}

TEST_F(RetryTest, TheDeadlineBoundsEveryPause) {
  RetryPolicy retry({.deadline = start_ + absl::Milliseconds(10)});
  EXPECT_LE(*retry.AfterFailure(Broken(), start_), absl::Milliseconds(10));
  EXPECT_FALSE(
      retry.AfterFailure(Broken(), start_ + absl::Seconds(1)).has_value());
}

}  // namespace
}  // namespace invar
