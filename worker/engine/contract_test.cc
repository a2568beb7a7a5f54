// The numerics contract, held by engine, cache and model together: quick cases,
// and those that the matrix of tests/contract does not have (an answer resumed
// by another worker, hits of decoded blocks, texts that share while they run).
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "worker/engine/testing/deferring_model.h"
#include "worker/engine/testing/engine_harness.h"
#include "worker/model/model.h"
#include "worker/model/testing/random_checkpoint.h"

namespace invar {
namespace {

using worker::v1::Submit;
using worker::v1::Terminal;

constexpr int32_t kPromptTokens = 75;
constexpr int32_t kMaxTokens = 60;  // past the second block

class ContractTest : public ::testing::TestWithParam<KvDtype> {
 protected:
  static void SetUpTestSuite() {
    folder_ = ::testing::TempDir() + "/contract_checkpoint";
    std::filesystem::create_directories(folder_);
    const ModelConfig config = testing::TinyModelConfig();
    vocab_size_ = config.vocab_size;
    ASSERT_TRUE(testing::WriteRandomCheckpoint(folder_, config, 11).ok());
  }

  std::unique_ptr<EngineHarness> NewWorker(int64_t step_tokens = 48,
                                           int threads = 2,
                                           int64_t kv_blocks = 200) {
    absl::StatusOr<std::unique_ptr<Model>> model =
        Model::Load({folder_, GetParam(), threads});
    EXPECT_TRUE(model.ok()) << model.status();
    Engine::Options options;
    options.kv_blocks = kv_blocks;
    options.max_running_sequences = 40;
    options.max_step_tokens = step_tokens;
    options.max_context_tokens = 512;
    options.max_top_logprobs = 5;
    options.tokenizer_ids = vocab_size_;
    return std::make_unique<EngineHarness>(options,
                                           ForThisRun(*std::move(model)));
  }

  static std::vector<int32_t> Prompt(int32_t size, int32_t salt) {
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < size; ++i) {
      ids.push_back((i * 31 + salt * 17 + i * i) %
                    static_cast<int32_t>(vocab_size_));
    }
    return ids;
  }

  static Submit Scored(int64_t request, float temperature) {
    Submit submit = MakeSubmit(request, Prompt(kPromptTokens, 0), kMaxTokens);
    submit.mutable_sampling()->set_temperature(temperature);
    submit.set_seed(5);
    submit.set_logprobs(true);
    submit.set_prompt_logprobs(true);
    return submit;
  }

  static void ExpectSame(const Answer& a, const Answer& b) {
    EXPECT_EQ(a.token_ids, b.token_ids);
    EXPECT_EQ(a.logprobs, b.logprobs);
    EXPECT_EQ(a.prompt_logprobs, b.prompt_logprobs);
  }

  inline static std::string folder_;
  inline static int64_t vocab_size_ = 0;
};

TEST_P(ContractTest, PrefillAndDecode) {
  const Answer written = NewWorker()->Run(Scored(1, 0.8f));
  std::vector<int32_t> text = Prompt(kPromptTokens, 0);
  text.insert(text.end(), written.token_ids.begin(), written.token_ids.end());
  Submit score = MakeSubmit(2, text, 0);
  score.set_prompt_logprobs(true);
  const Answer scored = NewWorker()->Run(score);
  std::vector<float> expected = written.prompt_logprobs;
  expected.insert(expected.end(), written.logprobs.begin(),
                  written.logprobs.end());
  EXPECT_EQ(scored.prompt_logprobs, expected);
}

TEST_P(ContractTest, ResumedElsewhere) {
  const Answer whole = NewWorker()->Run(Scored(1, 0.8f));
  for (const int delivered : {1, 30, 59}) {
    Submit submit = Scored(2, 0.8f);
    submit.mutable_token_ids()->Add(whole.token_ids.begin(),
                                    whole.token_ids.begin() + delivered);
    submit.set_total_tokens(submit.token_ids_size());
    const Answer rest = NewWorker()->Run(submit);
    EXPECT_EQ(rest.token_ids,
              std::vector<int32_t>(whole.token_ids.begin() + delivered,
                                   whole.token_ids.end()));
    EXPECT_EQ(rest.logprobs,
              std::vector<float>(whole.logprobs.begin() + delivered,
                                 whole.logprobs.end()));
  }
}

TEST_P(ContractTest, HitsOfDecodedBlocks) {
  // The second prompt is the first with its answer: blocks that decode wrote.
  auto worker = NewWorker();
  Submit submit = MakeSubmit(1, Prompt(30, 0), 120);
  submit.mutable_sampling()->set_temperature(0.8f);
  const Answer first = worker->Run(submit);
  std::vector<int32_t> text = Prompt(30, 0);
  text.insert(text.end(), first.token_ids.begin(), first.token_ids.end());
  Submit next = MakeSubmit(2, text, 20);
  next.set_logprobs(true);
  const Answer warm = worker->Run(next);
  EXPECT_EQ(warm.cached_tokens, 2 * kBlockTokens);
  ExpectSame(warm, NewWorker()->Run(next));
}

TEST_P(ContractTest, ManyThatShareAtOnce) {
  const Answer alone = NewWorker()->Run(Scored(1, 0.8f));
  Submit submit = Scored(0, 0.8f);
  submit.set_prompt_logprobs(false);
  auto worker = NewWorker();
  for (int i = 0; i < 24; ++i) {
    submit.mutable_key()->set_request(100 + i);
    worker->Submit(submit);
    if (i % 3 == 0) worker->Step();
  }
  worker->Drain();
  for (int i = 0; i < 24; ++i) {
    EXPECT_EQ(worker->answer(100 + i).token_ids, alone.token_ids);
    EXPECT_EQ(worker->answer(100 + i).logprobs, alone.logprobs);
  }
  EXPECT_EQ(worker->engine().kv_blocks_used(), 0);
  // One text of 135 tokens, whose last one is never computed: two full blocks.
  EXPECT_EQ(worker->engine().kv_blocks_cached(), 2);
}

TEST_P(ContractTest, PreemptedByPressureAndByHand) {
  constexpr int kRequests = 10;
  const auto request = [](int i) {
    Submit submit = MakeSubmit(i, Prompt(5 + 5 * i, i), 300);
    submit.mutable_sampling()->set_temperature(i % 2 * 0.8f);
    submit.set_seed(i);
    submit.set_logprobs(true);
    submit.set_prompt_logprobs(i % 3 == 0);
    return submit;
  };
  auto calm = NewWorker();
  for (int i = 0; i < kRequests; ++i) calm->Submit(request(i));
  calm->Drain();
  EXPECT_EQ(calm->engine().preemptions(), 0);
  auto pressed = NewWorker(48, 2, /*kv_blocks=*/12);
  for (int i = 0; i < kRequests; ++i) pressed->Submit(request(i));
  int64_t by_pressure = 0;
  for (int step = 1; !pressed->engine().idle() && step < 4000; ++step) {
    const int64_t before = pressed->engine().preemptions();
    pressed->Step();
    by_pressure += pressed->engine().preemptions() - before;
    if (step % 37 == 0) pressed->Preempt(step / 37 % kRequests);
  }
  EXPECT_GT(by_pressure, 2);
  EXPECT_GT(pressed->engine().preemptions() - by_pressure, 2);
  for (int i = 0; i < kRequests; ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(pressed->answer(i).reason(), Terminal::LENGTH);
    ExpectSame(pressed->answer(i), calm->answer(i));
  }
}

std::string DtypeName(const ::testing::TestParamInfo<KvDtype>& dtype) {
  static constexpr const char* kNames[] = {"Fp8E5m2", "Fp8E4m3", "Bf16",
                                           "Fp32"};
  return kNames[static_cast<int>(dtype.param)];
}

INSTANTIATE_TEST_SUITE_P(KvDtypes, ContractTest,
                         ::testing::Values(KvDtype::kFp8E5m2, KvDtype::kFp8E4m3,
                                           KvDtype::kBf16, KvDtype::kFp32),
                         DtypeName);

TEST(NotFiniteWeightTest, EndsTheRequestsThatMeetIt) {
  const std::string folder = ::testing::TempDir() + "/poisoned_checkpoint";
  std::filesystem::create_directories(folder);
  const ModelConfig config = testing::TinyModelConfig();
  std::vector<testing::RawTensor> tensors = testing::RandomTensors(config, 11);
  for (testing::RawTensor& tensor : tensors) {
    if (tensor.name != "model.embed_tokens.weight") continue;
    ASSERT_EQ(tensor.dtype, "BF16");
    // The first element of id 3's row becomes a bf16 infinity.
    const size_t at = 3 * config.hidden_size * 2;
    tensor.bytes[at] = '\x80';
    tensor.bytes[at + 1] = '\x7f';
  }
  ASSERT_TRUE(testing::WriteCheckpoint(folder, config, tensors).ok());
  absl::StatusOr<std::unique_ptr<Model>> model =
      Model::Load({folder, KvDtype::kFp8E5m2, 1});
  ASSERT_TRUE(model.ok()) << model.status();
  Engine::Options options;
  options.kv_blocks = 8;
  options.max_running_sequences = 4;
  options.max_step_tokens = 64;
  options.max_context_tokens = 256;
  // The poisoned id is not chosen, so that the healthy answer never meets it.
  options.tokenizer_ids = 3;
  EngineHarness harness(options, ForThisRun(*std::move(model)));
  harness.Submit(MakeSubmit(1, {1, 2, 3}, 4));
  harness.Submit(MakeSubmit(2, {1, 2, 4}, 4));
  harness.Drain();
  EXPECT_EQ(harness.answer(1).reason(), Terminal::NOT_FINITE);
  EXPECT_EQ(harness.answer(2).reason(), Terminal::LENGTH);
  EXPECT_EQ(harness.answer(2).token_ids.size(), 4u);
  EXPECT_EQ(harness.engine().kv_blocks_used(), 0);
}

}  // namespace
}  // namespace invar
