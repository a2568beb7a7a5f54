// The engine's duties over a model without arithmetic; contract_test.cc holds
// the real one to the numerics contract.
#include "worker/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "kernels/ops.h"
#include "worker/engine/testing/engine_fixture.h"

namespace invar {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using worker::v1::Submit;
using worker::v1::Terminal;

TEST_F(EngineTest, GreedyAnswerOverSeveralBlocksAndChunks) {
  const Answer answer = harness_.Run(MakeSubmit(1, Prompt(150), 70));
  EXPECT_EQ(answer.token_ids, Expected(Prompt(150), 70));
  EXPECT_EQ(answer.positions.front(), 150);
  EXPECT_EQ(answer.positions.back(), 219);
  EXPECT_EQ(answer.reason(), Terminal::LENGTH);
  ExpectBaseline(1);
}

TEST_F(EngineTest, BatchMatesDoNotShow) {
  for (int i = 0; i < 8; ++i) {
    harness_.Submit(MakeSubmit(i, Prompt(5 + 11 * i, i), 20));
  }
  harness_.Drain();
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(harness_.answer(i).token_ids,
              Expected(Prompt(5 + 11 * i, i), 20));
  }
  ExpectBaseline(8);
}

TEST_F(EngineTest, DecodesGoBeforePrefill) {
  harness_.Submit(MakeSubmit(1, Prompt(4), 40));
  harness_.Step();
  harness_.Submit(MakeSubmit(2, Prompt(64), 1));
  for (int i = 0; i < 4 + StepsAhead(); ++i) harness_.Step();
  // 15 of 16 tokens a step are left to the prompt: it is not yet through, and
  // the decode has not missed a step.
  EXPECT_EQ(harness_.answer(1).token_ids.size(), 5 + StepsAhead());
  EXPECT_TRUE(harness_.answer(2).token_ids.empty());
  harness_.Step();
  EXPECT_EQ(harness_.answer(2).token_ids.size(), 1);
}

TEST_F(EngineTest, StopIdEndsTheAnswerAndIsReported) {
  const std::vector<int32_t> expected = Expected(Prompt(10), 30);
  Submit submit = MakeSubmit(1, Prompt(10), 30);
  submit.mutable_sampling()->add_stop_token_ids(expected[4]);
  const Answer answer = harness_.Run(submit);
  const auto first = std::find(expected.begin(), expected.end(), expected[4]);
  EXPECT_EQ(answer.token_ids,
            std::vector<int32_t>(expected.begin(), first + 1));
  EXPECT_EQ(answer.reason(), Terminal::STOP);
  ExpectBaseline(1);
}

TEST_F(EngineTest, MinTokensComeBeforeAStop) {
  const std::vector<int32_t> expected = Expected(Prompt(10), 30);
  Submit submit = MakeSubmit(1, Prompt(10), 30);
  submit.mutable_sampling()->add_stop_token_ids(expected[0]);
  submit.mutable_sampling()->set_min_tokens(1);
  const Answer answer = harness_.Run(submit);
  EXPECT_GT(answer.token_ids.size(), 1u);
}

TEST_F(EngineTest, IdsBeyondTheTokenizerAreNeverChosen) {
  Submit submit = MakeSubmit(1, Prompt(3), 300);
  submit.mutable_sampling()->set_temperature(100.0f);
  submit.set_top_logprobs(5);
  const Answer answer = harness_.Run(submit);
  ASSERT_EQ(answer.token_ids.size(), 300u);
  for (const int32_t id : answer.token_ids) EXPECT_LT(id, 90);
  for (const auto& position : answer.alternatives) {
    ASSERT_EQ(position.token_ids_size(), 5);
    for (const int32_t id : position.token_ids()) EXPECT_LT(id, 90);
  }
}

TEST_F(EngineTest, SamplingIsAFunctionOfSeedAndPosition) {
  Submit submit = MakeSubmit(1, Prompt(9), 40);
  submit.mutable_sampling()->set_temperature(1.0f);
  submit.set_seed(7);
  const Answer alone = harness_.Run(submit);
  submit.mutable_key()->set_request(2);
  harness_.Submit(MakeSubmit(3, Prompt(50), 40));
  EXPECT_EQ(harness_.Run(submit).token_ids, alone.token_ids);
  submit.mutable_key()->set_request(4);
  submit.set_seed(8);
  EXPECT_NE(harness_.Run(submit).token_ids, alone.token_ids);
}

TEST_F(EngineTest, AlternativesComeLikeliestFirst) {
  Submit submit = MakeSubmit(1, Prompt(9), 1);
  submit.set_logprobs(true);
  submit.set_top_logprobs(3);
  const Answer answer = harness_.Run(submit);
  ASSERT_EQ(answer.alternatives.size(), 1u);
  const auto& top = answer.alternatives[0];
  EXPECT_EQ(top.token_ids(0), answer.token_ids[0]);
  EXPECT_EQ(top.logprobs(0), answer.logprobs[0]);
  EXPECT_GE(top.logprobs(0), top.logprobs(1));
  EXPECT_GE(top.logprobs(1), top.logprobs(2));
}

TEST_F(EngineTest, PromptLogprobsComeInPages) {
  const std::vector<int32_t> prompt = Prompt(100);
  Submit submit = MakeSubmit(1, prompt, 0);
  submit.set_prompt_logprobs(true);
  const Answer answer = harness_.Run(submit);
  ASSERT_EQ(answer.prompt_logprobs.size(), 99u);
  for (size_t i = 1; i < prompt.size(); ++i) {
    const std::vector<float> logits = fake_.Logits(std::span(prompt).first(i));
    EXPECT_EQ(answer.prompt_logprobs[i - 1],
              cpu::LogProb(logits, cpu::LogSumExp(logits), prompt[i]));
  }
  EXPECT_TRUE(answer.token_ids.empty());
  EXPECT_EQ(answer.reason(), Terminal::LENGTH);
  int32_t next = 1;
  for (const auto& report : harness_.reports()) {
    const auto& attempt = report.attempts(0);
    EXPECT_EQ(attempt.prompt_position(), next);
    EXPECT_LE(attempt.prompt_logprobs_size(), 16);
    next += attempt.prompt_logprobs_size();
  }
  ExpectBaseline(1);
}

TEST_F(EngineTest, PromptLogprobsLeaveTheAnswerAlone) {
  Submit submit = MakeSubmit(1, Prompt(33), 12);
  submit.set_prompt_logprobs(true);
  const Answer answer = harness_.Run(submit);
  EXPECT_EQ(answer.token_ids, Expected(Prompt(33), 12));
  EXPECT_EQ(answer.prompt_logprobs.size(), 32u);
}

TEST_F(EngineTest, ZeroMaxTokensWithoutScoringComputesNothing) {
  EXPECT_EQ(harness_.Run(MakeSubmit(1, Prompt(33), 0)).reason(),
            Terminal::LENGTH);
  EXPECT_EQ(harness_.engine().steps(), 0);
  ExpectBaseline(1);
}

TEST_F(EngineTest, ResumeGivesTheRest) {
  const std::vector<int32_t> whole = Expected(Prompt(20), 30);
  for (const size_t delivered : {1u, 7u, 29u, 30u}) {
    std::vector<int32_t> tokens = Prompt(20);
    tokens.insert(tokens.end(), whole.begin(), whole.begin() + delivered);
    Submit submit = MakeSubmit(delivered, tokens, 30);
    submit.set_prompt_tokens(20);
    submit.set_prompt_logprobs(true);
    const Answer answer = harness_.Run(submit);
    EXPECT_EQ(answer.token_ids,
              std::vector<int32_t>(whole.begin() + delivered, whole.end()));
    if (delivered < 30) {
      EXPECT_EQ(answer.positions.front(), 20 + static_cast<int>(delivered));
    }
    EXPECT_EQ(answer.prompt_logprobs.size(), 19u);
    EXPECT_EQ(answer.reason(), Terminal::LENGTH);
  }
  ExpectBaseline(4);
}

TEST_F(EngineTest, ResumeAfterADeliveredStopWritesNothing) {
  std::vector<int32_t> tokens = Prompt(20);
  tokens.push_back(5);
  Submit submit = MakeSubmit(1, tokens, 30);
  submit.set_prompt_tokens(20);
  submit.mutable_sampling()->add_stop_token_ids(5);
  const Answer answer = harness_.Run(submit);
  EXPECT_TRUE(answer.token_ids.empty());
  EXPECT_EQ(answer.reason(), Terminal::STOP);
  // A stop id at the end of the prompt is no stop.
  submit = MakeSubmit(2, tokens, 1);
  submit.mutable_sampling()->add_stop_token_ids(5);
  EXPECT_EQ(harness_.Run(submit).token_ids.size(), 1u);
}

TEST_F(EngineTest, TheContextEndsAnAnswer) {
  const Answer answer = harness_.Run(MakeSubmit(1, Prompt(1000), 100));
  EXPECT_EQ(answer.token_ids.size(), 24u);
  EXPECT_EQ(answer.reason(), Terminal::LENGTH);
  ExpectBaseline(1);
}

TEST_F(EngineTest, CancelFreesAtEveryStage) {
  harness_.Submit(MakeSubmit(1, Prompt(40), 40));
  harness_.Cancel(1);  // waiting
  harness_.Drain();
  harness_.Submit(MakeSubmit(2, Prompt(40), 40));
  harness_.Step();
  harness_.Cancel(2);  // within its prompt
  harness_.Drain();
  harness_.Submit(MakeSubmit(3, Prompt(40), 40));
  for (int i = 0; i < 10; ++i) harness_.Step();
  harness_.Cancel(3);  // within its answer
  harness_.Drain();
  harness_.Cancel(3);  // ended: stale
  EXPECT_TRUE(harness_.answer(1).token_ids.empty());
  EXPECT_TRUE(harness_.answer(2).token_ids.empty());
  EXPECT_EQ(harness_.answer(3).token_ids.size(), 8u);
  for (int i = 1; i <= 3; ++i) {
    EXPECT_EQ(harness_.answer(i).reason(), Terminal::CANCELLED);
  }
  ExpectBaseline(3);
}

TEST_F(EngineTest, DeadlineEndsOneAttempt) {
  Submit hurried = MakeSubmit(1, Prompt(10), 40);
  hurried.set_deadline_ms(100);
  harness_.Submit(hurried);
  harness_.Submit(MakeSubmit(2, Prompt(10), 40));
  for (int i = 0; i < 5; ++i) harness_.Step();
  harness_.Advance(absl::Milliseconds(100));
  harness_.Drain();
  EXPECT_EQ(harness_.answer(1).reason(), Terminal::DEADLINE);
  EXPECT_LT(harness_.answer(1).token_ids.size(), 40u);
  EXPECT_EQ(harness_.answer(2).token_ids, Expected(Prompt(10), 40));
  ExpectBaseline(2);
}

TEST_F(EngineTest, BeyondTheCreditsIsRejected) {
  for (int i = 0; i < 9; ++i) harness_.Submit(MakeSubmit(i, Prompt(4), 4));
  harness_.Drain();
  EXPECT_EQ(harness_.answer(7).reason(), Terminal::LENGTH);
  EXPECT_EQ(harness_.answer(8).reason(), Terminal::REJECTED);
  ExpectBaseline(9);
  // The credits came back.
  EXPECT_EQ(harness_.Run(MakeSubmit(8, Prompt(4), 4)).reason(),
            Terminal::LENGTH);
}

TEST_F(EngineTest, BeyondTheBlocksIsRejected) {
  for (int i = 0; i < 3; ++i) {
    harness_.Submit(MakeSubmit(i, Prompt(1000, i), 4));  // 16 of 40 blocks
  }
  harness_.Drain();
  EXPECT_EQ(harness_.answer(1).reason(), Terminal::LENGTH);
  EXPECT_EQ(harness_.answer(2).reason(), Terminal::REJECTED);
  ExpectBaseline(3);
  EXPECT_EQ(harness_.credits().kv_tokens(), (40 + 3 * 16) * kBlockTokens);
}

TEST_F(EngineTest, AClosedSessionFreesAndOthersGoOn) {
  Engine::Options options = SmallEngineOptions();
  options.schedulers = 2;
  EngineHarness harness(options, NewFakeModel());
  harness.Open(2, 1);
  harness.Submit(MakeSubmit(1, Prompt(50), 20));
  harness.engine().Submit(2, MakeSubmit(2, Prompt(50), 20), absl::UnixEpoch());
  for (int i = 0; i < 8; ++i) harness.Step();
  harness.engine().Close(2);
  EXPECT_EQ(harness.engine().kv_blocks_used(), 1);
  harness.Drain();
  EXPECT_EQ(harness.answer(1).token_ids, Expected(Prompt(50), 20));
  EXPECT_EQ(harness.answer(2).reason(), Terminal::REASON_UNSPECIFIED);
  EXPECT_EQ(harness.engine().kv_blocks_used(), 0);
  // A submit to a closed session goes nowhere.
  harness.engine().Submit(2, MakeSubmit(3, Prompt(5), 2), absl::UnixEpoch());
  EXPECT_TRUE(harness.engine().idle());
}

TEST_F(EngineTest, SharesSumToTheCapacity) {
  Engine::Options options = SmallEngineOptions();
  options.schedulers = 3;
  Engine engine(options, NewFakeModel());
  CreditAmount sum;
  for (int place = 0; place < 3; ++place) sum += engine.Share(place);
  EXPECT_EQ(sum.sequences, 8);
  EXPECT_EQ(sum.kv_tokens, options.kv_blocks * kBlockTokens);
  EXPECT_EQ(engine.Share(0).sequences, 3);
  EXPECT_EQ(engine.Share(2).sequences, 2);
}

class PoisonTest : public EngineTest {
 protected:
  PoisonTest() : EngineTest({.poison_id = 89}) {}
};

TEST_F(PoisonTest, NotFiniteEndsThatRequestAlone) {
  std::vector<int32_t> poisoned = Prompt(30);
  poisoned[25] = 89;
  harness_.Submit(MakeSubmit(1, poisoned, 10));
  harness_.Submit(MakeSubmit(2, {1, 2, 3}, 1));
  harness_.Drain();
  EXPECT_EQ(harness_.answer(1).reason(), Terminal::NOT_FINITE);
  EXPECT_TRUE(harness_.answer(1).token_ids.empty());
  EXPECT_THAT(harness_.answer(2).token_ids,
              ElementsAre(Expected({1, 2, 3}, 1)[0]));
  ExpectBaseline(2);
}

TEST_F(PoisonTest, WhatIsNotFiniteIsNotShared) {
  std::vector<int32_t> poisoned = Prompt(64);
  poisoned.resize(150, 3);
  poisoned[100] = 89;
  harness_.Run(MakeSubmit(1, poisoned, 10));
  EXPECT_EQ(harness_.engine().kv_blocks_cached(), 1);
  const Answer again = harness_.Run(MakeSubmit(2, poisoned, 10));
  EXPECT_EQ(again.reason(), Terminal::NOT_FINITE);
  EXPECT_EQ(harness_.engine().kv_blocks_cached(), 1);
  std::vector<int32_t> healthy = Prompt(64);
  healthy.push_back(5);
  const Answer answer = harness_.Run(MakeSubmit(3, healthy, 1));
  EXPECT_EQ(answer.cached_tokens, 64);
  EXPECT_EQ(answer.token_ids, Expected(healthy, 1));
}

TEST_F(EngineTest, CachedTokensComeWithTheFirstToken) {
  for (const int tokens : {63, 64, 65, 128, 129, 300}) {
    const int32_t hit = (tokens - 1) / 64 * 64;
    harness_.Run(MakeSubmit(1, Prompt(tokens, tokens), 70));
    EXPECT_EQ(harness_.answer(1).cached_tokens, 0);
    const size_t before = harness_.reports().size();
    const Answer warm = harness_.Run(MakeSubmit(1, Prompt(tokens, tokens), 70));
    EXPECT_EQ(warm.token_ids, Expected(Prompt(tokens, tokens), 70));
    EXPECT_EQ(warm.cached_tokens, hit);
    const auto& first = harness_.reports()[before].attempts(0);
    EXPECT_EQ(first.token_ids_size(), 1);
    EXPECT_EQ(first.cached_tokens(), hit);
  }
}

TEST_F(EngineTest, AResumedAttemptReadsOutputButReportsPromptOnly) {
  const std::vector<int32_t> whole = Expected(Prompt(100), 100);
  harness_.Run(MakeSubmit(1, Prompt(100), 100));
  std::vector<int32_t> tokens = Prompt(100);
  tokens.insert(tokens.end(), whole.begin(), whole.begin() + 90);
  Submit submit = MakeSubmit(2, tokens, 100);
  submit.set_prompt_tokens(100);
  const int64_t steps = harness_.engine().steps();
  const Answer rest = harness_.Run(submit);
  EXPECT_EQ(rest.token_ids,
            std::vector<int32_t>(whole.begin() + 90, whole.end()));
  EXPECT_EQ(rest.cached_tokens, 100);
  // 128 of 190 tokens are there: 62 in chunks of 16, then 9 more.
  EXPECT_EQ(harness_.engine().steps() - steps, 4 + 9);
}

TEST_F(EngineTest, AScoredPromptReadsNoSharedBlock) {
  harness_.Run(MakeSubmit(1, Prompt(150), 1));
  Submit submit = MakeSubmit(2, Prompt(150), 5);
  submit.set_prompt_logprobs(true);
  const Answer answer = harness_.Run(submit);
  EXPECT_EQ(answer.prompt_logprobs.size(), 149u);
  EXPECT_EQ(answer.cached_tokens, 0);
  EXPECT_EQ(answer.token_ids, Expected(Prompt(150), 5));
}

TEST_F(EngineTest, CachedBlocksGiveWayUnderPressure) {
  // 40 blocks, and more than 100 blocks of texts, some of which come again.
  for (int i = 0; i < 30; ++i) {
    const int32_t salt = i % 7 * (i % 3);
    harness_.Submit(MakeSubmit(i, Prompt(100 + 17 * (i % 9), salt), 80));
    for (int step = 0; step < 40; ++step) harness_.Step();
  }
  harness_.Drain();
  int32_t cached = 0;
  for (int i = 0; i < 30; ++i) {
    const int32_t salt = i % 7 * (i % 3);
    EXPECT_EQ(harness_.answer(i).token_ids,
              Expected(Prompt(100 + 17 * (i % 9), salt), 80));
    cached += harness_.answer(i).cached_tokens;
  }
  EXPECT_GT(cached, 0);
  EXPECT_GT(harness_.engine().kv_blocks_cached(), 0);
  ExpectBaseline(30);
}

class InvalidSubmitTest : public EngineTest {
 protected:
  void ExpectInvalid(const Submit& submit, const std::string& message) {
    const Answer answer = harness_.Run(submit);
    EXPECT_EQ(answer.reason(), Terminal::INVALID);
    EXPECT_THAT(answer.terminal->message(), HasSubstr(message));
    EXPECT_EQ(harness_.engine().kv_blocks_used(), 0);
  }
};

TEST_F(InvalidSubmitTest, Malformed) {
  ExpectInvalid(MakeSubmit(1, {}, 4), "prompt_tokens");
  ExpectInvalid(MakeSubmit(2, {1, 97}, 4), "token_ids[1] is 97");
  ExpectInvalid(MakeSubmit(3, {1, -1}, 4), "token_ids[1] is -1");
  ExpectInvalid(MakeSubmit(4, Prompt(4), -1), "max_tokens");
  ExpectInvalid(MakeSubmit(5, Prompt(1025), 1), "total_tokens");
  Submit submit = MakeSubmit(6, Prompt(4), 4);
  submit.set_total_tokens(5);
  ExpectInvalid(submit, "fewer");
  submit.set_total_tokens(3);
  ExpectInvalid(submit, "total_tokens");
  submit = MakeSubmit(7, Prompt(4), 4);
  submit.set_prompt_tokens(-3);
  ExpectInvalid(submit, "prompt_tokens");
  submit = MakeSubmit(8, Prompt(20), 4);
  submit.set_prompt_tokens(10);
  ExpectInvalid(submit, "more output than max_tokens");
  submit = MakeSubmit(9, Prompt(4), 4);
  submit.set_top_logprobs(6);
  ExpectInvalid(submit, "top_logprobs");
  submit = MakeSubmit(10, Prompt(4), 4);
  submit.set_deadline_ms(-1);
  ExpectInvalid(submit, "deadline_ms");
  // The largest counts that fit the message.
  submit = MakeSubmit(11, Prompt(4), std::numeric_limits<int32_t>::max());
  submit.set_prompt_tokens(std::numeric_limits<int32_t>::max());
  ExpectInvalid(submit, "total_tokens");
}

TEST_F(InvalidSubmitTest, SamplingOutOfRange) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto with = [](auto set) {
    Submit submit = MakeSubmit(1, Prompt(4), 4);
    set(submit.mutable_sampling());
    return submit;
  };
  ExpectInvalid(with([&](auto* s) { s->set_temperature(nan); }), "temperature");
  ExpectInvalid(with([](auto* s) { s->set_temperature(-1); }), "temperature");
  ExpectInvalid(with([](auto* s) { s->set_temperature(1e9f); }), "temperature");
  ExpectInvalid(with([](auto* s) { s->set_top_k(-1); }), "top_k");
  ExpectInvalid(with([](auto* s) { s->set_top_p(0); }), "top_p");
  ExpectInvalid(with([&](auto* s) { s->set_top_p(nan); }), "top_p");
  ExpectInvalid(with([](auto* s) { s->set_min_p(1.5f); }), "min_p");
  ExpectInvalid(with([](auto* s) { s->set_min_tokens(-1); }), "min_tokens");
  ExpectInvalid(with([](auto* s) { s->add_stop_token_ids(97); }),
                "stop_token_ids[0] is 97");
  for (const float value : {-2.1f, 2.1f, nan}) {
    ExpectInvalid(with([&](auto* s) { s->set_presence_penalty(value); }),
                  "presence_penalty");
    ExpectInvalid(with([&](auto* s) { s->set_frequency_penalty(value); }),
                  "frequency_penalty");
  }
  for (const float value : {0.0f, -1.0f, 2.1f, nan}) {
    ExpectInvalid(with([&](auto* s) { s->set_repetition_penalty(value); }),
                  "repetition_penalty");
  }
  for (const float value : {-101.0f, 101.0f, nan}) {
    ExpectInvalid(with([&](auto* s) { (*s->mutable_logit_bias())[1] = value; }),
                  "logit_bias[1]");
  }
  for (const int32_t id : {-1, 97, std::numeric_limits<int32_t>::max()}) {
    ExpectInvalid(with([&](auto* s) { (*s->mutable_logit_bias())[id] = 1; }),
                  "is of no token");
  }
}

TEST_F(EngineTest, MoreThanTheWholeCacheIsInvalid) {
  Engine::Options options = SmallEngineOptions();
  options.kv_blocks = 2;
  EngineHarness harness(options, NewFakeModel());
  const Answer answer = harness.Run(MakeSubmit(1, Prompt(100), 100));
  EXPECT_EQ(answer.reason(), Terminal::INVALID);
  EXPECT_THAT(answer.terminal->message(), HasSubstr("holds 128"));
}

TEST_F(EngineTest, AStepStaysWithinItsTokens) {
  int64_t most = 0;
  FakeModel::Options model;
  model.on_forward = [&most](std::span<const SequenceSlice> slices) {
    int64_t tokens = 0;
    for (const SequenceSlice& slice : slices) tokens += slice.token_ids.size();
    most = std::max(most, tokens);
  };
  Engine::Options options = SmallEngineOptions();
  options.max_step_tokens = 3;  // fewer than sequences
  EngineHarness harness(options, NewFakeModel(model));
  for (int i = 0; i < 8; ++i) {
    harness.Submit(MakeSubmit(i, Prompt(2 + i, i), 60));
  }
  harness.Drain();
  EXPECT_EQ(most, 3);
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(harness.answer(i).token_ids, Expected(Prompt(2 + i, i), 60));
  }
}

}  // namespace
}  // namespace invar
