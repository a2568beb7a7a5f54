// Steps in flight while the next one is planned: whatever a step turns out to
// have ended or a command ends meanwhile, no answer shows it and no block is
// lost.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "worker/engine/testing/engine_fixture.h"

namespace invar {
namespace {

using worker::v1::Submit;
using worker::v1::Terminal;

// A step as its model saw it.
struct SeenStep {
  int64_t tokens = 0;
  int64_t rows = 0;
};

class AheadTest : public ::testing::Test {
 protected:
  void Make(const Engine::Options& options, FakeModel::Options model = {}) {
    model.on_forward = [this](std::span<const SequenceSlice> slices) {
      SeenStep step;
      for (const SequenceSlice& slice : slices) {
        step.tokens += static_cast<int64_t>(slice.token_ids.size());
        step.rows += slice.logit_rows;
      }
      seen_.push_back(step);
    };
    seen_.clear();
    fake_ = std::make_unique<FakeModel>(model);
    harness_ = std::make_unique<EngineHarness>(
        options, std::make_unique<DeferringModel>(
                     std::make_unique<FakeModel>(std::move(model))));
  }
  void SetUp() override { Make(SmallEngineOptions()); }

  std::vector<int32_t> Expected(std::vector<int32_t> tokens, int count) const {
    std::vector<int32_t> result;
    for (int i = 0; i < count; ++i) {
      result.push_back(cpu::Argmax(fake_->Logits(tokens), 90));
      tokens.push_back(result.back());
    }
    return result;
  }
  static Submit Penalised(int64_t request, int32_t prompt, int32_t tokens) {
    Submit submit = MakeSubmit(
        request, Prompt(prompt, static_cast<int32_t>(request)), tokens);
    submit.mutable_sampling()->set_frequency_penalty(0.5f);
    return submit;
  }
  bool in_flight() const {
    return harness_->engine().sequences() == 0 && !harness_->engine().idle();
  }
  void ExpectNothingHeld() {
    EXPECT_TRUE(harness_->engine().idle());
    EXPECT_EQ(harness_->engine().kv_blocks_used(), 0);
  }

  std::vector<SeenStep> seen_;
  std::unique_ptr<FakeModel> fake_;
  std::unique_ptr<EngineHarness> harness_;
};

TEST_F(AheadTest, TheNextStepIsStartedBeforeAStepIsFinished) {
  // Nothing is computed before Finish, so the model has seen only what is
  // finished, and the engine holds the place of the token in flight.
  harness_->Submit(MakeSubmit(1, Prompt(63), 3));
  for (int i = 0; i < 4; ++i) harness_->Step();
  EXPECT_EQ(seen_.size(), 4u);
  EXPECT_EQ(harness_->answer(1).token_ids.size(), 1u);
  EXPECT_EQ(harness_->engine().kv_blocks_used(), 1);
  harness_->Step();
  EXPECT_EQ(harness_->engine().kv_blocks_used(), 2);
  harness_->Drain();
  EXPECT_EQ(harness_->answer(1).token_ids, Expected(Prompt(63), 3));
}

TEST_F(AheadTest, NoStepIsPlannedBeyondMaxTokensOrTheContext) {
  for (const int tokens : {1, 2, 3, 30}) {
    seen_.clear();
    harness_->Submit(MakeSubmit(tokens, Prompt(10), tokens));
    EXPECT_EQ(harness_->Drain(), tokens);
    EXPECT_EQ(seen_.size(), static_cast<size_t>(tokens));
    EXPECT_EQ(harness_->answer(tokens).reason(), Terminal::LENGTH);
    EXPECT_EQ(harness_->answer(tokens).token_ids, Expected(Prompt(10), tokens));
  }
  seen_.clear();
  harness_->Run(MakeSubmit(100, Prompt(1000), 100));
  EXPECT_EQ(harness_->answer(100).token_ids.size(), 24u);
  int64_t computed = 0;
  for (const SeenStep& step : seen_) computed += step.tokens;
  EXPECT_EQ(computed, 1023);  // All but the last token.
  ExpectNothingHeld();
}

TEST_F(AheadTest, AStopDropsWhatIsInFlight) {
  const std::vector<int32_t> expected = Expected(Prompt(10), 30);
  Submit submit = MakeSubmit(1, Prompt(10), 30);
  submit.mutable_sampling()->add_stop_token_ids(expected[4]);
  const auto first = std::find(expected.begin(), expected.end(), expected[4]);
  const std::vector<int32_t> stopped(expected.begin(), first + 1);
  harness_->Submit(submit);
  while (harness_->answer(1).terminals == 0) harness_->Step();
  EXPECT_TRUE(in_flight());
  EXPECT_EQ(harness_->engine().kv_blocks_used(), 0);
  harness_->Drain();
  EXPECT_EQ(harness_->answer(1).token_ids, stopped);
  EXPECT_EQ(harness_->answer(1).reason(), Terminal::STOP);
  EXPECT_EQ(seen_.size(), stopped.size() + 1);  // One in vain.
  ExpectNothingHeld();
}

// Stops, whose blocks are taken again at once, beside sequences that go on; the
// pool is small enough for every block to be reused.
TEST_F(AheadTest, BlocksOfWhatStoppedAreReused) {
  Engine::Options options = SmallEngineOptions();
  options.kv_blocks = 9;
  Make(options);
  harness_->Submit(MakeSubmit(0, Prompt(20, 50), 200));
  const std::vector<int32_t> longest = Expected(Prompt(20, 50), 200);
  for (int i = 1; i <= 60; ++i) {
    const std::vector<int32_t> prompt = Prompt(50 + i % 20, i);
    const std::vector<int32_t> expected = Expected(prompt, 20);
    Submit submit = MakeSubmit(i, prompt, 20);
    submit.mutable_sampling()->add_stop_token_ids(expected[i % 7]);
    harness_->Submit(submit);
    for (int step = 0; step < 3; ++step) harness_->Step();
  }
  harness_->Drain();
  EXPECT_EQ(harness_->answer(0).token_ids, longest);
  int stopped = 0;
  for (int i = 1; i <= 60; ++i) {
    SCOPED_TRACE(i);
    const Answer& answer = harness_->answer(i);
    if (answer.reason() == Terminal::REJECTED) continue;
    std::vector<int32_t> expected = Expected(Prompt(50 + i % 20, i), 20);
    const auto stop =
        std::find(expected.begin(), expected.end(), expected[i % 7]);
    expected.erase(stop + 1, expected.end());
    EXPECT_EQ(answer.token_ids, expected);
    EXPECT_EQ(answer.reason(), Terminal::STOP);
    ++stopped;
  }
  EXPECT_GT(stopped, 30);  // The rest was beyond the credits.
  ExpectNothingHeld();
}

TEST_F(AheadTest, ACancelADeadlineAndAClosedSessionDropWhatIsInFlight) {
  Submit hurried = MakeSubmit(2, Prompt(10, 2), 40);
  hurried.set_deadline_ms(100);
  harness_->Open(2, 0);
  for (int prompt_steps = 1; prompt_steps <= 12; ++prompt_steps) {
    // In their prompts, and in their answers.
    harness_->Submit(MakeSubmit(1, Prompt(70, 1), 40));
    harness_->Submit(hurried);
    harness_->engine().Submit(2, MakeSubmit(3, Prompt(10, 3), 40),
                              absl::InfiniteFuture());
    harness_->Submit(MakeSubmit(4, Prompt(33, 4), 20));
    for (int i = 0; i < prompt_steps; ++i) harness_->Step();
    harness_->Cancel(1);
    harness_->Advance(absl::Milliseconds(100));
    harness_->engine().Close(2);
    harness_->Step();
    EXPECT_EQ(harness_->answer(1).reason(), Terminal::CANCELLED);
    EXPECT_EQ(harness_->answer(2).reason(), Terminal::DEADLINE);
    harness_->Drain();
    EXPECT_EQ(harness_->answer(3).terminals, 0);
    EXPECT_EQ(harness_->answer(4).token_ids, Expected(Prompt(33, 4), 20));
    ExpectNothingHeld();
    for (int request = 1; request <= 4; ++request) harness_->Forget(request);
    harness_->Open(2, 0);
  }
}

// The same request again, while what the attempt before it left is in flight.
TEST_F(AheadTest, AnAttemptIsNotGivenWhatWasInFlightBefore) {
  harness_->Submit(MakeSubmit(1, Prompt(20), 30));
  for (int i = 0; i < 6; ++i) harness_->Step();
  harness_->Cancel(1);
  Submit again = MakeSubmit(1, Prompt(20, 9), 30);
  again.mutable_key()->set_attempt(2);
  harness_->Submit(again);
  harness_->Step();
  EXPECT_EQ(harness_->answer(1).reason(), Terminal::CANCELLED);
  harness_->Forget(1);
  harness_->Drain();
  EXPECT_EQ(harness_->answer(1).token_ids, Expected(Prompt(20, 9), 30));
  ExpectNothingHeld();
}

TEST_F(AheadTest, NotFiniteWhileTheNextStepIsInFlight) {
  // The poisoned id is chosen for position 62: the step in flight when that is
  // known fills the block.
  const std::vector<int32_t> prompt(58, 7);
  const std::vector<int32_t> healthy = Expected(prompt, 12);
  const int32_t poison = healthy[4];
  ASSERT_EQ(std::count(healthy.begin(), healthy.begin() + 4, poison), 0);
  ASSERT_NE(poison, 7);
  Make(SmallEngineOptions(), {.poison_id = poison});
  const std::vector<int32_t> other = {7};
  harness_->Submit(MakeSubmit(1, prompt, 12));
  harness_->Submit(MakeSubmit(2, other, 1));
  while (harness_->answer(1).terminals == 0) harness_->Step();
  EXPECT_EQ(harness_->answer(1).reason(), Terminal::NOT_FINITE);
  EXPECT_TRUE(in_flight());
  harness_->Drain();
  EXPECT_EQ(harness_->answer(1).token_ids,
            std::vector<int32_t>(healthy.begin(), healthy.begin() + 5));
  EXPECT_EQ(harness_->answer(2).reason(), Terminal::LENGTH);
  EXPECT_EQ(harness_->engine().kv_blocks_cached(), 0);
  ExpectNothingHeld();
}

TEST_F(AheadTest, PreemptedAtEveryStep) {
  Submit submit = MakeSubmit(1, Prompt(150), 40);
  submit.mutable_sampling()->set_temperature(0.9f);
  submit.set_logprobs(true);
  submit.set_prompt_logprobs(true);
  const Answer expected = harness_->Run(submit);
  ExpectNothingHeld();
  for (int at = 0; at < 50; ++at) {
    SCOPED_TRACE(at);
    Make(SmallEngineOptions());
    harness_->Submit(submit);
    for (int step = 0; step < at; ++step) harness_->Step();
    harness_->Preempt(1);
    EXPECT_EQ(harness_->engine().kv_blocks_used(), 0);
    harness_->Drain(300);
    EXPECT_EQ(harness_->answer(1).token_ids, expected.token_ids);
    EXPECT_EQ(harness_->answer(1).logprobs, expected.logprobs);
    EXPECT_EQ(harness_->answer(1).prompt_logprobs, expected.prompt_logprobs);
  }
}

TEST_F(AheadTest, PressureDropsNothingInFlight) {
  Engine::Options options = SmallEngineOptions();
  options.kv_blocks = 6;
  Make(options);
  for (int i = 0; i < 3; ++i) {
    harness_->Submit(MakeSubmit(i, Prompt(10, i), 200));
  }
  harness_->Drain(3000);
  EXPECT_GT(harness_->engine().preemptions(), 0);
  int64_t rows = 0;
  for (const SeenStep& step : seen_) rows += step.rows;
  EXPECT_EQ(rows, 3 * 200);  // No token was chosen twice.
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(harness_->answer(i).token_ids, Expected(Prompt(10, i), 200));
  }
  ExpectNothingHeld();
}

TEST_F(AheadTest, PenaltiesWaitForTheTextAndStarveNobody) {
  harness_->Submit(MakeSubmit(1, Prompt(10, 1), 60));
  for (int i = 0; i < 4; ++i) harness_->Step();
  harness_->Submit(Penalised(2, 30, 12));
  harness_->Submit(MakeSubmit(3, Prompt(10, 3), 12));
  // A step that was in flight, two of the prompt, and one a token.
  for (int i = 0; i < 1 + 2 + 11; ++i) harness_->Step();
  EXPECT_EQ(harness_->answer(2).token_ids.size(), 12u);
  EXPECT_EQ(harness_->answer(1).token_ids.size(), 4u + 14);
  harness_->Drain();
  Make(SmallEngineOptions());
  EXPECT_EQ(harness_->Run(Penalised(2, 30, 12)).token_ids.size(), 12u);
  EXPECT_EQ(seen_.size(), 2u + 11);  // None in vain.
  ExpectNothingHeld();
}

TEST_F(AheadTest, AnEngineGoesWithStepsInFlight) {
  harness_->Submit(MakeSubmit(1, Prompt(10), 40));
  for (int i = 0; i < 5; ++i) harness_->Step();
  const size_t seen = seen_.size();
  harness_.reset();
  EXPECT_EQ(seen_.size(), seen + 1);  // Before its cache went.
}

}  // namespace
}  // namespace invar
