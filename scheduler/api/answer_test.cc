#include "scheduler/api/answer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/digest.h"
#include "common/seed.h"
#include "common/status.h"
#include "scheduler/tokenizer/test_tokenizer.h"

namespace invar::scheduler {
namespace {

using worker::v1::Terminal;

class RecordingSink : public AnswerSink {
 public:
  void OnEvent(v1::GenerateResponse event) override {
    ASSERT_FALSE(ended);
    text += event.delta().text();
    for (const int32_t id : event.delta().token_ids()) ids.push_back(id);
    for (const float one : event.delta().logprobs()) logprobs.push_back(one);
    if (event.has_final()) final = event.final();
  }
  void OnEnd(const grpc::Status& end) override {
    ASSERT_FALSE(ended);
    ended = true;
    status = end;
  }
  bool cancelled() const override { return false; }

  std::string text;
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  v1::GenerateFinal final;
  grpc::Status status;
  bool ended = false;
};

// Byte b is token b; see test_tokenizer.h.
class AnswerTest : public ::testing::Test {
 protected:
  void Make(std::vector<std::string> stops, bool include_stop_text = false,
            std::vector<int32_t> resume = {}, int32_t answers = 1) {
    tokenizer_ = *model_.Load();
    spec_ = std::make_shared<RequestSpec>();
    spec_->number = 1;
    spec_->request_id = "r";
    spec_->seed = 9;
    spec_->prompt = {1, 2, 3};
    spec_->resume_tokens = std::move(resume);
    spec_->logprobs = true;
    spec_->answers = answers;
    spec_->sampling.add_stop_token_ids(*tokenizer_->eos_id());
    for (const auto& stop : stops) spec_->sampling.add_stop_strings(stop);
    std::vector<Sample> samples;
    for (int32_t index = 0; index < answers; ++index) {
      samples.emplace_back(
          spec_, index, *tokenizer_,
          *StopMatcher::Create(stops, include_stop_text),
          Sample::TextOptions{.include_stop_text = include_stop_text});
    }
    answer_ = std::make_unique<Answer>(spec_, "m", std::move(samples), sink_);
    answer_->Handle(Begin{1, "fingerprint", 100});
    position_ = 3 + static_cast<int32_t>(spec_->resume_tokens.size());
  }

  bool Deliver(const std::string& bytes, std::vector<int32_t> more = {}) {
    scheduler::Deliver action{1, 0, {}};
    action.report.set_position(position_);
    for (const char c : bytes) {
      action.report.add_token_ids(static_cast<uint8_t>(c));
      action.report.add_logprobs(-1.5f);
    }
    for (const int32_t id : more) {
      action.report.add_token_ids(id);
      action.report.add_logprobs(-0.5f);
    }
    position_ += action.report.token_ids_size();
    return answer_->Handle(action);
  }

  // What the core says when a worker ends the only answer.
  void End(Terminal::Reason reason) {
    answer_->Handle(AnswerEnded{1, 0, reason});
    answer_->Handle(Finish{1});
  }

  TestModel model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::shared_ptr<RequestSpec> spec_;
  std::shared_ptr<RecordingSink> sink_ = std::make_shared<RecordingSink>();
  std::unique_ptr<Answer> answer_;
  int32_t position_ = 0;
};

TEST_F(AnswerTest, EndsWithUsageAndReceipt) {
  Make({});
  EXPECT_FALSE(Deliver("ab"));
  EXPECT_FALSE(Deliver("c", {*tokenizer_->eos_id()}));
  End(Terminal::STOP);
  ASSERT_TRUE(sink_->ended && sink_->status.ok());
  EXPECT_EQ(sink_->text, "abc");
  const auto& completion = sink_->final.completions(0);
  EXPECT_EQ(completion.finish().reason(), v1::Finish::STOP);
  EXPECT_EQ(completion.finish().stop_token_id(), *tokenizer_->eos_id());
  EXPECT_EQ(sink_->final.usage().prompt_tokens(), 3);
  EXPECT_EQ(sink_->final.usage().output_tokens(), 4);
  const auto& receipt = completion.receipt();
  EXPECT_EQ(receipt.fingerprint(), "fingerprint");
  EXPECT_EQ(receipt.seed(), 9u);
  EXPECT_EQ(receipt.prompt_digest(), TokenDigest(spec_->prompt));
  EXPECT_EQ(receipt.output_digest(), TokenDigest(sink_->ids));
  EXPECT_EQ(receipt.sampling().max_tokens(), 100);
}

TEST_F(AnswerTest, HoldsBackHalfACharacter) {
  Make({});
  Deliver("\xe2\x82");
  EXPECT_EQ(sink_->text, "");
  Deliver("\xac");
  EXPECT_EQ(sink_->text, "€");
  Deliver("\xe2");
  End(Terminal::LENGTH);
  EXPECT_EQ(sink_->text, "€\xef\xbf\xbd");
  EXPECT_EQ(sink_->final.completions(0).finish().reason(), v1::Finish::LENGTH);
}

TEST_F(AnswerTest, AStopStringEndsItAndWhatFollowsIsDropped) {
  Make({"end"});
  EXPECT_FALSE(Deliver("te"));
  EXPECT_EQ(sink_->text, "t");
  EXPECT_FALSE(Deliver("n"));
  EXPECT_TRUE(Deliver("dxyz"));
  EXPECT_EQ(sink_->text, "t");
  EXPECT_EQ(sink_->ids.size(), 4u);  // Those that made the stop string.
  // What the worker had already computed goes nowhere.
  EXPECT_FALSE(Deliver("more"));
  End(Terminal::LENGTH);
  EXPECT_TRUE(sink_->ended);
  EXPECT_EQ(sink_->final.completions(0).finish().reason(), v1::Finish::STOP);
  EXPECT_EQ(sink_->final.completions(0).finish().stop_string(), "end");
  EXPECT_EQ(sink_->final.usage().output_tokens(), 4);
  EXPECT_EQ(sink_->text, "t");
}

TEST_F(AnswerTest, IncludesTheStopTextIfAsked) {
  Make({"end"}, /*include_stop_text=*/true);
  EXPECT_TRUE(Deliver("the end."));
  EXPECT_EQ(sink_->text, "the end");
}

TEST_F(AnswerTest, ReleasesHeldTextAtTheEnd) {
  Make({"end"});
  Deliver("to en");
  EXPECT_EQ(sink_->text, "to ");
  End(Terminal::LENGTH);
  EXPECT_EQ(sink_->text, "to en");
}

TEST_F(AnswerTest, AResumedAnswerKnowsWhatWasSent) {
  Make({"abcd"}, false, {'a', 'b'});
  EXPECT_TRUE(Deliver("cd"));
  End(Terminal::LENGTH);
  EXPECT_EQ(sink_->text, "");
  EXPECT_EQ(sink_->final.usage().output_tokens(), 4);
  EXPECT_EQ(sink_->final.completions(0).receipt().output_digest(),
            TokenDigest(std::vector<int32_t>{'a', 'b', 'c', 'd'}));
}

TEST_F(AnswerTest, AnAnswerResumedAfterItsStopStringGetsNothingMore) {
  Make({"ab"}, false, {'a', 'b'});
  EXPECT_TRUE(Deliver("c"));
  End(Terminal::LENGTH);
  EXPECT_TRUE(sink_->ids.empty());
  EXPECT_EQ(sink_->final.completions(0).finish().stop_string(), "ab");
}

TEST_F(AnswerTest, EachOfSeveralAnswersHasItsOwnTextStopAndReceipt) {
  Make({"end"}, false, {}, 2);
  scheduler::Deliver action{1, 1, {}};
  for (const char c : std::string("bend")) action.report.add_token_ids(c);
  EXPECT_TRUE(answer_->Handle(action));
  EXPECT_FALSE(Deliver("a"));
  answer_->Handle(AnswerEnded{1, 0, Terminal::LENGTH});
  EXPECT_FALSE(sink_->ended);
  answer_->Handle(Finish{1});
  ASSERT_TRUE(sink_->ended);
  EXPECT_EQ(sink_->text, "ba");
  ASSERT_EQ(sink_->final.completions_size(), 2);
  const auto& first = sink_->final.completions(0);
  const auto& second = sink_->final.completions(1);
  EXPECT_EQ(first.finish().reason(), v1::Finish::LENGTH);
  EXPECT_EQ(second.finish().stop_string(), "end");
  EXPECT_EQ(first.receipt().seed(), 9u);
  EXPECT_EQ(second.receipt().index(), 1);
  EXPECT_EQ(second.receipt().seed(), AnswerSeed(9, 1));
  EXPECT_EQ(first.receipt().output_digest(),
            TokenDigest(std::vector<int32_t>{'a'}));
  EXPECT_EQ(sink_->final.usage().output_tokens(), 5);
}

TEST_F(AnswerTest, AnErrorKeepsItsReasonAndRetry) {
  Make({});
  Finish finish;
  finish.request = 1;
  finish.status = absl::ResourceExhaustedError("full");
  finish.error_reason = "QUEUE_FULL";
  finish.retry_after = absl::Seconds(2);
  answer_->Handle(finish);
  EXPECT_EQ(ErrorReason(sink_->status), "QUEUE_FULL");
  EXPECT_EQ(ErrorRetryAfter(sink_->status), absl::Seconds(2));
}

}  // namespace
}  // namespace invar::scheduler
