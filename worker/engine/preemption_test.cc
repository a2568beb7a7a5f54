// Memory pressure: who gives way, and that no answer shows it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "worker/engine/engine.h"
#include "worker/engine/testing/engine_fixture.h"

namespace invar {
namespace {

using worker::v1::Submit;
using worker::v1::Terminal;

void ExpectSame(const Answer& a, const Answer& b) {
  EXPECT_EQ(a.token_ids, b.token_ids);
  EXPECT_EQ(a.positions, b.positions);
  EXPECT_EQ(a.logprobs, b.logprobs);
  EXPECT_EQ(a.prompt_logprobs, b.prompt_logprobs);
  ASSERT_EQ(a.alternatives.size(), b.alternatives.size());
  for (size_t i = 0; i < a.alternatives.size(); ++i) {
    EXPECT_EQ(a.alternatives[i].SerializeAsString(),
              b.alternatives[i].SerializeAsString());
  }
  EXPECT_EQ(a.reason(), b.reason());
  EXPECT_EQ(a.terminals, b.terminals);
}

std::unique_ptr<EngineHarness> NewHarness(int64_t kv_blocks,
                                          int64_t places = 16,
                                          int64_t step_tokens = 32) {
  Engine::Options options = SmallEngineOptions();
  options.kv_blocks = kv_blocks;
  options.max_running_sequences = places;
  options.max_step_tokens = step_tokens;
  return std::make_unique<EngineHarness>(options, NewFakeModel());
}

// All kinds of requests, of up to 6 blocks each.
Submit Varied(int i) {
  Submit submit = MakeSubmit(i, Prompt(1 + 29 * i % 61, i), 100 + 37 * i % 190);
  submit.mutable_sampling()->set_temperature(i % 3 * 0.5f);
  submit.set_seed(i);
  submit.set_logprobs(i % 2 == 0);
  submit.set_top_logprobs(i % 4);
  submit.set_prompt_logprobs(i % 5 == 0);
  return submit;
}

TEST(PressureTest, EveryAnswerIsThatOfACalmRun) {
  constexpr int kRequests = 12;
  auto calm = NewHarness(1000);
  for (int i = 0; i < kRequests; ++i) calm->Submit(Varied(i));
  calm->Drain();
  EXPECT_EQ(calm->engine().preemptions(), 0);
  for (const int64_t kv_blocks : {12, 17, 25}) {
    auto pressed = NewHarness(kv_blocks);
    int64_t preemptions = 0;
    for (int i = 0; i < kRequests; ++i) pressed->Submit(Varied(i));
    while (!pressed->engine().idle()) {
      preemptions += pressed->Step().preemptions;
    }
    EXPECT_GT(preemptions, 0);
    EXPECT_EQ(preemptions, pressed->engine().preemptions());
    EXPECT_EQ(pressed->engine().kv_blocks_used(), 0);
    for (int i = 0; i < kRequests; ++i) {
      SCOPED_TRACE(i);
      ExpectSame(pressed->answer(i), calm->answer(i));
    }
  }
}

TEST(PressureTest, TheFirstArrivalMissesNoStepAndOthersEndInOrder) {
  constexpr int kRequests = 8;
  constexpr int kTokens = 300;
  auto harness = NewHarness(8);
  for (int i = 0; i < kRequests; ++i) {
    harness->Submit(MakeSubmit(i, Prompt(10, i), kTokens));
  }
  for (int step = 1; step <= kTokens; ++step) {
    harness->Step();
    ASSERT_EQ(harness->answer(0).token_ids.size(), step);
  }
  EXPECT_GT(harness->engine().preemptions(), 0);
  for (int i = 1; i < kRequests; ++i) {
    while (harness->answer(i).terminals == 0) {
      for (int later = i + 1; later < kRequests; ++later) {
        ASSERT_EQ(harness->answer(later).terminals, 0);
      }
      harness->Step();
    }
  }
  EXPECT_TRUE(harness->engine().idle());
}

TEST(PressureTest, TheLastArrivalGivesWay) {
  // Two blocks each at first; a third for each is not there.
  auto harness = NewHarness(6);
  for (int i = 0; i < 3; ++i) {
    harness->Submit(MakeSubmit(i, Prompt(10, i), 200));
  }
  const auto step_to_the_next_preemption = [&harness] {
    StepSummary summary;
    do {
      summary = harness->Step();
    } while (summary.preemptions == 0 && !harness->engine().idle());
    return summary;
  };
  StepSummary summary = step_to_the_next_preemption();
  EXPECT_EQ(summary.preemptions, 1);
  EXPECT_EQ(summary.waiting, 1);
  EXPECT_EQ(harness->answer(0).token_ids.size(), 2 * 64 - 10 + 2);
  EXPECT_EQ(harness->answer(1).token_ids.size(), 2 * 64 - 10 + 2);
  EXPECT_EQ(harness->answer(2).token_ids.size(), 2 * 64 - 10 + 1);
  summary = step_to_the_next_preemption();
  EXPECT_EQ(summary.waiting, 2);
  EXPECT_EQ(harness->answer(0).token_ids.size(), 3 * 64 - 10 + 2);
  EXPECT_EQ(harness->answer(1).token_ids.size(), 3 * 64 - 10 + 1);
  EXPECT_EQ(harness->answer(2).token_ids.size(), 2 * 64 - 10 + 1);
}

TEST(PressureTest, AStartLeavesEachItsNextBlock) {
  // Holds 2 of 4 blocks, and may grow.
  const Submit first = MakeSubmit(1, Prompt(100), 100);
  const auto running = [&first](int64_t prompt, int64_t max_tokens) {
    auto harness = NewHarness(4);
    harness->Submit(first);
    harness->Submit(MakeSubmit(2, Prompt(prompt, 1), max_tokens));
    return harness->Step().running;
  };
  EXPECT_EQ(running(60, 4), 2);  // 1 block, and it stays that
  EXPECT_EQ(running(60, 5), 1);  // 1 block, and may want another
  EXPECT_EQ(running(65, 1), 1);  // 2 blocks: none left for the first
}

TEST(PressureTest, OneThatFillsThePoolRunsToItsEnd) {
  auto harness = NewHarness(4);
  harness->Submit(MakeSubmit(1, Prompt(3, 1), 100));
  harness->Step();
  harness->Submit(MakeSubmit(2, Prompt(3, 2), 4 * 64 - 3));
  harness->Submit(MakeSubmit(3, Prompt(3, 3), 100));
  harness->Drain(2000);
  EXPECT_EQ(harness->answer(2).token_ids.size(), 4 * 64 - 3);
  EXPECT_EQ(harness->answer(3).token_ids.size(), 100);
}

// A request that is preempted once, before each of its steps in turn.
class PreemptedOnceTest : public ::testing::TestWithParam<bool> {
 protected:
  static Submit Request() {
    Submit submit = MakeSubmit(1, Prompt(150), 70);
    submit.mutable_sampling()->set_temperature(0.9f);
    submit.set_logprobs(true);
    submit.set_top_logprobs(2);
    submit.set_prompt_logprobs(GetParam());
    return submit;
  }
};

TEST_P(PreemptedOnceTest, AtEveryPosition) {
  const Answer expected = NewHarness(8)->Run(Request());
  const int steps = 5 + 69;  // 32 tokens a step: the prompt, then the answer
  for (int at = 1; at <= steps; ++at) {
    SCOPED_TRACE(at);
    auto harness = NewHarness(8);
    harness->Submit(Request());
    for (int step = 0; step < at; ++step) harness->Step();
    const bool runs = !harness->engine().idle();
    harness->Preempt(1);
    EXPECT_EQ(harness->engine().preemptions(), runs ? 1 : 0);
    EXPECT_EQ(harness->engine().kv_blocks_used(), 0);
    harness->Drain(300);
    ExpectSame(harness->answer(1), expected);
    EXPECT_EQ(harness->answer(1).cached_tokens, 0);
  }
}

TEST_P(PreemptedOnceTest, WithItsBlocksTakenByAnOlderOne) {
  Submit request = Request();
  request.set_max_tokens(200);
  const Answer expected = NewHarness(8)->Run(request);
  for (int lead = 0; lead <= 50; lead += 5) {
    SCOPED_TRACE(lead);
    // The older one ends with all blocks of the pool.
    auto harness = NewHarness(6);
    harness->Submit(MakeSubmit(0, Prompt(10, 7), 6 * 64 - 10));
    for (int step = 0; step < lead; ++step) harness->Step();
    harness->Submit(request);
    harness->Drain(1000);
    EXPECT_EQ(harness->engine().preemptions(), 1);
    ExpectSame(harness->answer(1), expected);
  }
}

TEST_P(PreemptedOnceTest, AgainAndAgain) {
  const Answer expected = NewHarness(8)->Run(Request());
  auto harness = NewHarness(8);
  harness->Submit(Request());
  int steps = 0;
  while (!harness->engine().idle() && steps < 1000) {
    harness->Step();
    // Often enough to be in the midst of a recompute.
    if (++steps % 5 == 0) harness->Preempt(1);
  }
  EXPECT_GT(harness->engine().preemptions(), 10);
  ExpectSame(harness->answer(1), expected);
}

INSTANTIATE_TEST_SUITE_P(PromptScored, PreemptedOnceTest, ::testing::Bool());

TEST_F(EngineTest, AResumedAttemptIsPreemptedToo) {
  const std::vector<int32_t> whole = Expected(Prompt(100), 100);
  std::vector<int32_t> tokens = Prompt(100);
  tokens.insert(tokens.end(), whole.begin(), whole.begin() + 50);
  Submit submit = MakeSubmit(1, tokens, 100);
  submit.set_prompt_tokens(100);
  submit.set_prompt_logprobs(true);
  for (const int at : {1, 7, 9, 10, 30}) {
    submit.mutable_key()->set_request(at);
    harness_.Submit(submit);
    for (int step = 0; step < at; ++step) harness_.Step();
    harness_.Preempt(at);
    harness_.Drain(300);
    EXPECT_EQ(harness_.answer(at).token_ids,
              std::vector<int32_t>(whole.begin() + 50, whole.end()));
    EXPECT_EQ(harness_.answer(at).positions.front(), 150);
    EXPECT_EQ(harness_.answer(at).prompt_logprobs.size(), 99u);
  }
  ExpectBaseline(5);
}

TEST_F(EngineTest, CachedTokensAreThoseOfTheFirstStart) {
  harness_.Run(MakeSubmit(1, Prompt(70), 1));
  harness_.Submit(MakeSubmit(2, Prompt(200), 3));
  for (int step = 0; step < 7; ++step) harness_.Step();
  harness_.Preempt(2);  // Two blocks of its own are in the cache now.
  const int64_t steps = harness_.engine().steps();
  harness_.Drain(100);
  EXPECT_EQ(harness_.answer(2).cached_tokens, 64);
  // The 200 tokens less 128 in chunks of 16, then two decodes; before them what
  // was in flight for nothing.
  EXPECT_EQ(harness_.engine().steps() - steps, StepsAhead() + 5 + 2);
}

TEST_F(EngineTest, WhatWaitsPreemptedCanBeCancelledAndExpires) {
  Submit submit = MakeSubmit(1, Prompt(40), 40);
  harness_.Submit(submit);
  submit.mutable_key()->set_request(2);
  submit.set_deadline_ms(100);
  harness_.Submit(submit);
  for (int step = 0; step < 10; ++step) harness_.Step();
  harness_.Preempt(1);
  harness_.Preempt(2);
  EXPECT_EQ(harness_.engine().kv_blocks_used(), 0);
  harness_.Cancel(1);
  harness_.Advance(absl::Milliseconds(100));
  harness_.Step();
  EXPECT_EQ(harness_.answer(1).reason(), Terminal::CANCELLED);
  EXPECT_EQ(harness_.answer(2).reason(), Terminal::DEADLINE);
  EXPECT_EQ(harness_.answer(1).terminals + harness_.answer(2).terminals, 2);
  ExpectBaseline(2);
}

TEST_F(EngineTest, AStaleKeyIsNotPreempted) {
  harness_.Preempt(1);  // never came
  for (int i = 0; i < 8; ++i) harness_.Submit(MakeSubmit(i, Prompt(4), 4));
  harness_.Preempt(7);  // waits
  worker::v1::AttemptKey other = MakeSubmit(0, {}, 0).key();
  harness_.Step();
  other.set_attempt(2);
  harness_.engine().Preempt(1, other);
  harness_.engine().Preempt(2, MakeSubmit(0, {}, 0).key());
  harness_.Drain(50);
  harness_.Preempt(0);  // ended
  EXPECT_EQ(harness_.engine().preemptions(), 0);
  ExpectBaseline(8);
}

TEST_F(EngineTest, AClosedSessionLeavesNoPreemptedSequence) {
  harness_.Submit(MakeSubmit(1, Prompt(40), 40));
  harness_.Step();
  harness_.Preempt(1);
  harness_.engine().Close(1);
  EXPECT_EQ(harness_.engine().idle(), !PlansAhead());
  EXPECT_EQ(harness_.Step().waiting, 0);
  EXPECT_TRUE(harness_.engine().idle());
  EXPECT_EQ(harness_.engine().kv_blocks_used(), 0);
}

}  // namespace
}  // namespace invar
