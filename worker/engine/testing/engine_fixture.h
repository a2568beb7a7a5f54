// A small engine over a FakeModel, and what its answers have to be.
#ifndef INVAR_WORKER_ENGINE_TESTING_ENGINE_FIXTURE_H_
#define INVAR_WORKER_ENGINE_TESTING_ENGINE_FIXTURE_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/ops.h"
#include "worker/engine/testing/deferring_model.h"
#include "worker/engine/testing/engine_harness.h"
#include "worker/engine/testing/fake_model.h"

namespace invar {

inline Engine::Options SmallEngineOptions() {
  Engine::Options options;
  options.kv_blocks = 40;
  options.max_running_sequences = 8;
  options.max_step_tokens = 16;
  options.max_context_tokens = 1024;
  options.max_top_logprobs = 5;
  options.tokenizer_ids = 90;  // of the model's 97
  return options;
}

inline std::vector<int32_t> Prompt(int64_t size, int32_t salt = 0) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < size; ++i) {
    ids.push_back(static_cast<int32_t>((i * 7 + salt * 13 + 1) % 90));
  }
  return ids;
}

inline std::unique_ptr<Model> NewFakeModel(FakeModel::Options options = {}) {
  return ForThisRun(std::make_unique<FakeModel>(std::move(options)));
}

class EngineTest : public ::testing::Test {
 protected:
  explicit EngineTest(FakeModel::Options model = {},
                      const Engine::Options& options = SmallEngineOptions())
      : fake_(model), harness_(options, NewFakeModel(model)) {}

  // Greedy continuation, computed without an engine.
  std::vector<int32_t> Expected(std::vector<int32_t> tokens, int count) {
    std::vector<int32_t> result;
    for (int i = 0; i < count; ++i) {
      result.push_back(cpu::Argmax(fake_.Logits(tokens), 90));
      tokens.push_back(result.back());
    }
    return result;
  }

  // Every attempt has ended: nothing is held, and all credits are back.
  void ExpectBaseline(int64_t submits) {
    const Engine& engine = harness_.engine();
    EXPECT_TRUE(engine.idle());
    EXPECT_EQ(engine.kv_blocks_used(), 0);
    EXPECT_EQ(engine.kv_blocks_available(), engine.options().kv_blocks);
    EXPECT_EQ(harness_.credits().sequences(),
              engine.options().max_running_sequences + submits);
  }

  FakeModel fake_;
  EngineHarness harness_;
};

}  // namespace invar

#endif  // INVAR_WORKER_ENGINE_TESTING_ENGINE_FIXTURE_H_
