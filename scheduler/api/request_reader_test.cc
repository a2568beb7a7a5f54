#include "scheduler/api/request_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/config.h"
#include "common/status.h"
#include "scheduler/tokenizer/test_tokenizer.h"

namespace invar::scheduler {
namespace {

using ::testing::ElementsAre;

// Every field's refusal, over gRPC: tests/integration/test_bad_input.py.
class RequestReaderTest : public ::testing::Test {
 protected:
  RequestReaderTest()
      : tokenizer_(*model_.Load()),
        limits_(ParseServerConfig("model { path: \"m\" }", "c")->limits()),
        reader_(*tokenizer_, limits_, "served") {}

  TestModel model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  v1::Limits limits_;
  RequestReader reader_;
  RequestSpec spec_;
};

TEST_F(RequestReaderTest, ResolvesEveryDefault) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids('A');
  ASSERT_TRUE(reader_.Read(request, &spec_).ok());
  EXPECT_THAT(spec_.prompt, ElementsAre('A'));
  EXPECT_EQ(spec_.sampling.temperature(), 0);
  EXPECT_EQ(spec_.sampling.top_p(), 1);
  EXPECT_EQ(spec_.sampling.repetition_penalty(), 1);
  EXPECT_THAT(spec_.sampling.stop_token_ids(),
              ElementsAre(*tokenizer_->eos_id()));
  EXPECT_FALSE(spec_.max_tokens.has_value());
}

TEST_F(RequestReaderTest, IgnoreEosAndOwnStops) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids('A');
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_stopping()->add_stop_token_ids('B');
  request.mutable_stopping()->add_stop_strings("stop");
  ASSERT_TRUE(reader_.Read(request, &spec_).ok());
  EXPECT_THAT(spec_.sampling.stop_token_ids(), ElementsAre('B'));
  EXPECT_THAT(spec_.sampling.stop_strings(), ElementsAre("stop"));
}

TEST_F(RequestReaderTest, ReadsTextAndChatAsTokenizeDoes) {
  v1::GenerateRequest request;
  auto* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("hi <eos>");
  ASSERT_TRUE(reader_.Read(request, &spec_).ok());
  EXPECT_EQ(spec_.prompt.front(), *tokenizer_->bos_id());
  // Nobody can forge a special token through a chat.
  EXPECT_THAT(spec_.prompt,
              ::testing::Not(::testing::Contains(*tokenizer_->eos_id())));
  std::vector<int32_t> ids;
  ASSERT_TRUE(reader_.ReadChat(request.chat(), &ids).ok());
  EXPECT_EQ(ids, spec_.prompt);
}

TEST_F(RequestReaderTest, TheModelIsItsNameOrNothing) {
  EXPECT_TRUE(reader_.CheckModel("").ok());
  EXPECT_TRUE(reader_.CheckModel("served").ok());
  EXPECT_EQ(reader_.CheckModel("other").error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(RequestReaderTest, PassesOnPenaltiesBiasAndTheNumberOfAnswers) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids('A');
  auto* sampling = request.mutable_sampling();
  sampling->set_presence_penalty(-2);
  sampling->set_frequency_penalty(0.5f);
  sampling->set_repetition_penalty(2);
  (*sampling->mutable_logit_bias())['B'] = -100;
  sampling->set_n(16);
  ASSERT_TRUE(reader_.Read(request, &spec_).ok());
  EXPECT_EQ(spec_.sampling.presence_penalty(), -2);
  EXPECT_EQ(spec_.sampling.frequency_penalty(), 0.5f);
  EXPECT_EQ(spec_.sampling.repetition_penalty(), 2);
  EXPECT_EQ(spec_.sampling.logit_bias().at('B'), -100);
  EXPECT_EQ(spec_.answers, 16);
}

TEST_F(RequestReaderTest, SeveralAnswersAreResumedFromTheirBeginning) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids('A');
  request.mutable_sampling()->set_n(2);
  request.mutable_resume()->set_expected_fingerprint("f");
  EXPECT_TRUE(reader_.Read(request, &spec_).ok());
  request.mutable_resume()->add_token_ids('B');
  EXPECT_EQ(ErrorFields(reader_.Read(request, &spec_)), "resume.token_ids");
}

}  // namespace
}  // namespace invar::scheduler
