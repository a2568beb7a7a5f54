// A step's tokens: decode does not wait for prefill, nor prefill for decode.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "worker/engine/testing/engine_fixture.h"

namespace invar {
namespace {

std::unique_ptr<EngineHarness> NewHarness(int64_t places, int64_t step_tokens) {
  Engine::Options options = SmallEngineOptions();
  options.kv_blocks = 200;
  options.max_running_sequences = places;
  options.max_step_tokens = step_tokens;
  return std::make_unique<EngineHarness>(options, NewFakeModel());
}

TEST(FairnessTest, NoDecodeMissesAStepWhilePromptsPour) {
  auto harness = NewHarness(/*places=*/8, /*step_tokens=*/16);
  for (int i = 0; i < 3; ++i) {
    harness->Submit(MakeSubmit(i, Prompt(2, i), 60));
  }
  harness->Step();
  for (int i = 3; i < 8; ++i) {
    harness->Submit(MakeSubmit(i, Prompt(600, i), 1));
  }
  for (size_t tokens = 2; tokens <= 60; ++tokens) {
    harness->Step();
    for (int i = 0; i < 3; ++i) {
      ASSERT_EQ(harness->answer(i).token_ids.size(), tokens);
    }
  }
  // 59 steps left 13 tokens each to 600: the first prompt is through.
  EXPECT_EQ(harness->answer(3).terminals, 1);
}

TEST(FairnessTest, PrefillAdvancesWhileDecodesFillTheStep) {
  // As many places as tokens: one place stays empty for it.
  auto harness = NewHarness(/*places=*/4, /*step_tokens=*/4);
  for (int i = 0; i < 2; ++i) {
    harness->Submit(MakeSubmit(i, Prompt(1, i), 200));
  }
  harness->Step();
  harness->Submit(MakeSubmit(2, Prompt(40, 2), 5));
  harness->Submit(MakeSubmit(3, Prompt(1, 3), 5));
  if (PlansAhead()) harness->Step();  // It was in flight.
  for (int step = 0; step < 20; ++step) {
    EXPECT_EQ(harness->Step().running, 3);
  }
  // Two tokens a step were left to it.
  EXPECT_EQ(harness->answer(2).token_ids.size(), 1u);
  EXPECT_LT(harness->answer(0).token_ids.size(), 200u);
  EXPECT_TRUE(harness->answer(3).token_ids.empty());
  harness->Drain(300);
  EXPECT_EQ(harness->answer(3).token_ids.size(), 5u);
}

TEST(FairnessTest, ChunksOfAPromptInterleaveWithDecodes) {
  std::vector<std::vector<int64_t>> steps;
  FakeModel::Options model;
  model.on_forward = [&steps](std::span<const SequenceSlice> slices) {
    steps.emplace_back();
    for (const SequenceSlice& slice : slices) {
      steps.back().push_back(static_cast<int64_t>(slice.token_ids.size()));
    }
  };
  EngineHarness harness(SmallEngineOptions(), NewFakeModel(model));
  harness.Submit(MakeSubmit(1, Prompt(3), 4));
  harness.Step();
  harness.Submit(MakeSubmit(2, Prompt(40, 1), 2));
  harness.Drain(20);
  // Ahead: the second step was in flight when the prompt came.
  const std::vector<std::vector<int64_t>> expected =
      PlansAhead() ? std::vector<std::vector<int64_t>>{{3},     {1},  {1, 15},
                                                       {1, 15}, {10}, {1}}
                   : std::vector<std::vector<int64_t>>{
                         {3}, {1, 15}, {1, 15}, {1, 10}, {1}};
  EXPECT_EQ(steps, expected);
}

TEST(FairnessTest, OneTokenAStepServesAllInOrder) {
  auto harness = NewHarness(/*places=*/4, /*step_tokens=*/1);
  for (int i = 0; i < 4; ++i) {
    harness->Submit(MakeSubmit(i, Prompt(5, i), 5));
  }
  for (int i = 0; i < 4; ++i) {
    for (int step = 0; step < 9; ++step) harness->Step();
    EXPECT_EQ(harness->answer(i).terminals, 1);
  }
  EXPECT_TRUE(harness->engine().idle());
}

}  // namespace
}  // namespace invar
