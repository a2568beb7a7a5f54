// Penalties and biases: against a plain reference, and over every way in which
// a text's output comes to be counted.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <vector>

#include "kernels/ops.h"
#include "worker/engine/testing/engine_fixture.h"

namespace invar {
namespace {

using invar::v1::EffectiveSampling;
using worker::v1::Submit;
using worker::v1::Terminal;

class PenaltiesTest : public EngineTest {
 protected:
  static Submit Penalised(int64_t request, float temperature) {
    Submit submit = MakeSubmit(request, Prompt(100), 90);
    EffectiveSampling* sampling = submit.mutable_sampling();
    sampling->set_temperature(temperature);
    sampling->set_presence_penalty(0.4f);
    sampling->set_frequency_penalty(0.7f);
    sampling->set_repetition_penalty(1.3f);
    (*sampling->mutable_logit_bias())[7] = 1.5f;
    (*sampling->mutable_logit_bias())[96] = 100.0f;  // beyond the tokenizer
    submit.set_seed(3);
    submit.set_logprobs(true);
    submit.set_top_logprobs(2);
    return submit;
  }

  // Recounts the whole text for every token.
  std::vector<int32_t> Reference(const Submit& submit) {
    const EffectiveSampling& sampling = submit.sampling();
    const size_t prompt = submit.prompt_tokens();
    std::vector<int32_t> text(submit.token_ids().begin(),
                              submit.token_ids().end());
    while (text.size() < prompt + submit.max_tokens()) {
      std::vector<float> logits = fake_.Logits(text);
      for (int32_t id = 0; id < 97; ++id) {
        const auto count = std::count(text.begin() + prompt, text.end(), id);
        float& logit = logits[id];
        if (std::count(text.begin(), text.end(), id) > 0) {
          logit = logit > 0 ? logit / sampling.repetition_penalty()
                            : logit * sampling.repetition_penalty();
        }
        if (count > 0) {
          logit -= sampling.frequency_penalty() * static_cast<float>(count);
          logit -= sampling.presence_penalty();
        }
        const auto bias = sampling.logit_bias().find(id);
        if (bias != sampling.logit_bias().end()) logit += bias->second;
      }
      text.push_back(cpu::Sample(logits, 90, {sampling.temperature()},
                                 submit.seed(), text.size()));
    }
    return {text.begin() + prompt, text.end()};
  }
};

TEST_F(PenaltiesTest, EqualAPlainReferenceAndLeaveLogprobsRaw) {
  for (const float temperature : {0.0f, 0.8f}) {
    const Submit submit = Penalised(1, temperature);
    const Answer answer = harness_.Run(submit);
    EXPECT_EQ(answer.token_ids, Reference(submit));
    EXPECT_NE(answer.token_ids, Expected(Prompt(100), 90));
    std::vector<int32_t> text = Prompt(100);
    for (size_t i = 0; i < answer.token_ids.size(); ++i) {
      const std::vector<float> logits = fake_.Logits(text);
      const double sum = cpu::LogSumExp(logits);
      ASSERT_EQ(answer.logprobs[i],
                cpu::LogProb(logits, sum, answer.token_ids[i]));
      ASSERT_EQ(answer.alternatives[i].token_ids(0), cpu::Argmax(logits, 90));
      text.push_back(answer.token_ids[i]);
    }
  }
}

TEST_F(PenaltiesTest, ResumedAndPreempted) {
  const std::vector<int32_t> whole = harness_.Run(Penalised(1, 0.8f)).token_ids;
  for (const int delivered : {1, 30, 89}) {
    Submit submit = Penalised(2, 0.8f);
    submit.mutable_token_ids()->Add(whole.begin(), whole.begin() + delivered);
    submit.set_total_tokens(submit.token_ids_size());
    EXPECT_EQ(harness_.Run(submit).token_ids,
              std::vector<int32_t>(whole.begin() + delivered, whole.end()));
  }
  for (const int at : {3, 7, 40}) {
    harness_.Submit(Penalised(100 + at, 0.8f));
    for (int step = 0; step < at; ++step) harness_.Step();
    harness_.Preempt(100 + at);
    harness_.Drain(500);
    EXPECT_EQ(harness_.answer(100 + at).token_ids, whole);
  }
  EXPECT_EQ(harness_.engine().preemptions(), 3);
}

TEST_F(PenaltiesTest, BatchMatesDoNotShow) {
  const std::vector<int32_t> alone = harness_.Run(Penalised(1, 0.8f)).token_ids;
  Submit plain = MakeSubmit(2, Prompt(60), 50);
  harness_.Submit(plain);
  harness_.Submit(Penalised(3, 0.8f));
  harness_.Submit(Penalised(4, 0.0f));
  harness_.Drain();
  EXPECT_EQ(harness_.answer(2).token_ids, Expected(Prompt(60), 50));
  EXPECT_EQ(harness_.answer(3).token_ids, alone);
}

TEST_F(PenaltiesTest, RepetitionAloneCountsThePrompt) {
  // Holds every id of the tokenizer, and no output yet.
  Submit submit = MakeSubmit(1, Prompt(90), 1);
  submit.mutable_sampling()->set_presence_penalty(2.0f);
  submit.mutable_sampling()->set_frequency_penalty(2.0f);
  EXPECT_EQ(harness_.Run(submit).token_ids, Expected(Prompt(90), 1));
  submit = MakeSubmit(2, Prompt(100), 60);
  submit.mutable_sampling()->set_repetition_penalty(2.0f);
  EXPECT_EQ(harness_.Run(submit).token_ids, Reference(submit));
}

TEST_F(PenaltiesTest, TheWorstValuesAreServed) {
  Submit submit = MakeSubmit(1, Prompt(20), 50);
  EffectiveSampling* sampling = submit.mutable_sampling();
  sampling->set_temperature(100.0f);
  sampling->set_presence_penalty(-2.0f);
  sampling->set_frequency_penalty(-2.0f);
  sampling->set_repetition_penalty(1e-45f);
  for (int32_t id = 0; id < 97; ++id) {
    (*sampling->mutable_logit_bias())[id] = id % 2 == 0 ? 100.0f : -100.0f;
  }
  const Answer answer = harness_.Run(submit);
  EXPECT_EQ(answer.reason(), Terminal::LENGTH);
  EXPECT_EQ(answer.token_ids.size(), 50u);
  for (const int32_t id : answer.token_ids) EXPECT_LT(id, 90);
}

}  // namespace
}  // namespace invar
