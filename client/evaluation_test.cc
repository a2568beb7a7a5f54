#include "client/evaluation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "client/fake_server.h"
#include "common/status.h"

namespace invar {
namespace {

using ::testing::ElementsAre;

constexpr int kProblems = 60;

// Problem i is answered by 2 i, and asks for it.
std::vector<MgsmProblem> MakeProblems() {
  std::vector<MgsmProblem> problems;
  for (int i = 0; i < kProblems; ++i) {
    problems.push_back({absl::StrCat("Twice ", i), absl::StrCat(2 * i)});
  }
  return problems;
}

// Wrong where i is a multiple of 4.
std::string AnswerProblem(const v1::GenerateRequest& request) {
  const std::string prompt = PromptOf(request);
  const int i = std::stoi(prompt.substr(prompt.rfind(' ') + 1));
  return absl::StrCat("So be it.\nAnswer: ", i % 4 == 0 ? 1 : 2 * i);
}

Evaluation Evaluate(const FakeServer& server, int concurrency) {
  EvaluationOptions options;
  options.instruction = "Say it.\n\n{input}";
  options.max_tokens = 77;
  options.pool.concurrency = concurrency;
  auto client = Client::Connect(server.address());
  EXPECT_TRUE(client.ok()) << client.status();
  return EvaluateMgsm(**client, MakeProblems(), options,
                      [](const Evaluation&) {});
}

TEST(EvaluateMgsm, ScoresEveryProblemWhateverTheConcurrency) {
  FakeServer server({.answer = AnswerProblem});
  const Evaluation one = Evaluate(server, 1);
  ASSERT_TRUE(one.result.status.ok()) << one.result.status.error_message();
  EXPECT_EQ(one.correct, 45);
  EXPECT_DOUBLE_EQ(one.Score(), 0.75);
  EXPECT_EQ(one.digest.size(), 64u);
  EXPECT_THAT(one.fingerprints, ElementsAre("f00d"));
  EXPECT_EQ(one.transcripts[3].prediction, "6");
  for (const int concurrency : {7, 64}) {
    const Evaluation many = Evaluate(server, concurrency);
    EXPECT_EQ(many.correct, one.correct);
    EXPECT_EQ(many.digest, one.digest);
    EXPECT_EQ(many.output_tokens, one.output_tokens);
  }
}

TEST(EvaluateMgsm, AsksByTheProtocol) {
  FakeServer server({.answer = AnswerProblem});
  Evaluate(server, 1);
  const auto requests = server.requests();
  ASSERT_EQ(requests.size(), static_cast<size_t>(kProblems));
  const v1::GenerateRequest& request = requests[9];
  ASSERT_EQ(request.chat().messages_size(), 1);
  EXPECT_EQ(request.chat().messages(0).role(), "user");
  EXPECT_EQ(request.chat().messages(0).content(), "Say it.\n\nTwice 9");
  EXPECT_TRUE(request.sampling().has_temperature());
  EXPECT_EQ(request.sampling().temperature(), 0);
  EXPECT_EQ(request.stopping().max_tokens(), 77);
}

TEST(EvaluateMgsm, DigestIsUnmovedByRetriesAndMovedByOneToken) {
  FakeServer steady({.answer = AnswerProblem});
  FakeServer busy({.answer = AnswerProblem,
                   .refuse = [](const v1::GenerateRequest&, int seen) {
                     if (seen % 3 != 0) return grpc::Status();
                     return Error(absl::StatusCode::kResourceExhausted,
                                  "QUEUE_FULL", "full")
                         .RetryAfter(absl::Milliseconds(1))
                         .ToStatus();
                   }});
  FakeServer other({.answer = [](const v1::GenerateRequest& request) {
    std::string text = AnswerProblem(request);
    // The same score from another text.
    if (PromptOf(request) == "Say it.\n\nTwice 9") text[0] = 's';
    return text;
  }});
  const Evaluation first = Evaluate(steady, 16);
  const Evaluation retried = Evaluate(busy, 16);
  const Evaluation moved = Evaluate(other, 16);
  EXPECT_GT(retried.result.retries, 0);
  EXPECT_EQ(retried.digest, first.digest);
  EXPECT_EQ(moved.correct, first.correct);
  EXPECT_NE(moved.digest, first.digest);
}

TEST(TranscriptDigest, CoversTokensReasonTextAndOrder) {
  Transcript a{
      .done = true, .text = "a", .token_ids = {1, 2}, .finish_reason = "STOP"};
  Transcript b = a;
  b.text = "b";
  const std::string digest = TranscriptDigest({a, b});
  EXPECT_NE(TranscriptDigest({b, a}), digest);
  EXPECT_NE(TranscriptDigest({a}), digest);
  Transcript other_tokens = b;
  other_tokens.token_ids = {1, 3};
  EXPECT_NE(TranscriptDigest({a, other_tokens}), digest);
  Transcript other_reason = b;
  other_reason.finish_reason = "LENGTH";
  EXPECT_NE(TranscriptDigest({a, other_reason}), digest);
  // The rendering of the header, hashed elsewhere.
  EXPECT_EQ(TranscriptDigest({a}),
            "efad8471f4de9abe2b26a3d1fbae70857965d85895f18635560a7ac61ce77cc3");
}

TEST(EvaluateMgsm, SaysWhichProblemFailed) {
  FakeServer server({.answer = AnswerProblem,
                     .refuse = [](const v1::GenerateRequest& request, int) {
                       return PromptOf(request) == "Say it.\n\nTwice 9"
                                  ? BadField("chat", "is odd").ToStatus()
                                  : grpc::Status::OK;
                     }});
  const Evaluation evaluation = Evaluate(server, 1);
  EXPECT_EQ(evaluation.result.index, 9u);
  EXPECT_EQ(evaluation.done, 9);
  EXPECT_EQ(evaluation.digest, "");
}

}  // namespace
}  // namespace invar
