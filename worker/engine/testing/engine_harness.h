// Drives an engine step by step, as its thread would, and collects answers.
#ifndef INVAR_WORKER_ENGINE_TESTING_ENGINE_HARNESS_H_
#define INVAR_WORKER_ENGINE_TESTING_ENGINE_HARNESS_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "worker/engine/engine.h"

namespace invar {

// All that was reported of one request.
struct Answer {
  std::vector<int32_t> token_ids;
  std::vector<float> logprobs;
  std::vector<worker::v1::Alternatives> alternatives;
  std::vector<float> prompt_logprobs;
  std::vector<int32_t> positions;  // of each of token_ids
  int32_t cached_tokens = 0;
  std::optional<worker::v1::Terminal> terminal;
  int terminals = 0;

  worker::v1::Terminal::Reason reason() const {
    return terminal.has_value() ? terminal->reason()
                                : worker::v1::Terminal::REASON_UNSPECIFIED;
  }
};

// Also checks that nothing is reported twice.
inline void AddTo(const worker::v1::AttemptReport& report, Answer* answer) {
  EXPECT_EQ(answer->terminals, 0) << report.DebugString();
  for (int i = 0; i < report.token_ids_size(); ++i) {
    if (!answer->positions.empty()) {
      EXPECT_EQ(report.position() + i, answer->positions.back() + 1);
    }
    answer->token_ids.push_back(report.token_ids(i));
    answer->positions.push_back(report.position() + i);
  }
  answer->cached_tokens += report.cached_tokens();
  const auto& logprobs = report.logprobs();
  answer->logprobs.insert(answer->logprobs.end(), logprobs.begin(),
                          logprobs.end());
  answer->alternatives.insert(answer->alternatives.end(),
                              report.alternatives().begin(),
                              report.alternatives().end());
  const auto& page = report.prompt_logprobs();
  if (!page.empty()) {
    EXPECT_EQ(report.prompt_position(), answer->prompt_logprobs.size() + 1);
  }
  answer->prompt_logprobs.insert(answer->prompt_logprobs.end(), page.begin(),
                                 page.end());
  if (report.has_terminal()) {
    answer->terminal = report.terminal();
    ++answer->terminals;
  }
}

// A submit of session 1 with neutral sampling.
inline worker::v1::Submit MakeSubmit(int64_t request,
                                     const std::vector<int32_t>& prompt,
                                     int32_t max_tokens) {
  worker::v1::Submit submit;
  submit.mutable_key()->set_epoch(1);
  submit.mutable_key()->set_request(request);
  submit.mutable_key()->set_attempt(1);
  submit.mutable_token_ids()->Add(prompt.begin(), prompt.end());
  submit.set_total_tokens(static_cast<int32_t>(prompt.size()));
  submit.set_prompt_tokens(static_cast<int32_t>(prompt.size()));
  submit.set_max_tokens(max_tokens);
  submit.mutable_sampling()->set_top_p(1.0f);
  submit.mutable_sampling()->set_repetition_penalty(1.0f);
  return submit;
}

class EngineHarness {
 public:
  // cache: as Engine has it.
  EngineHarness(const Engine::Options& options, std::unique_ptr<Model> model,
                std::unique_ptr<KvCache> cache = nullptr)
      : engine_(options, std::move(model), std::move(cache)) {
    Open(1, 0);
  }

  Engine& engine() { return engine_; }
  const Answer& answer(int64_t request) { return answers_[request]; }
  const worker::v1::Credits& credits() const { return credits_; }
  const std::vector<worker::v1::StepReport>& reports() const {
    return reports_;
  }

  // What was reported of it until now.
  void Forget(int64_t request) { answers_.erase(request); }

  void Open(SessionId session, int place) {
    engine_.Open(session, place, [this](worker::v1::StepReport report) {
      Collect(std::move(report));
    });
  }
  void Submit(const worker::v1::Submit& submit) {
    engine_.Submit(1, submit, now_);
  }
  void Cancel(int64_t request) {
    engine_.Cancel(1, MakeSubmit(request, {}, 0).key());
  }
  void Preempt(int64_t request) {
    engine_.Preempt(1, MakeSubmit(request, {}, 0).key());
  }
  // Also checks the accounts of the cache.
  StepSummary Step() {
    const StepSummary summary = engine_.Step(now_);
    EXPECT_EQ(summary.kv_blocks_used + engine_.kv_blocks_available(),
              summary.kv_blocks_total);
    EXPECT_LE(summary.kv_blocks_cached, engine_.kv_blocks_available());
    return summary;
  }
  void Advance(absl::Duration duration) { now_ += duration; }
  // Steps until nothing is left; returns how many steps that took. Fails the
  // test where `most` do not do.
  int Drain(int most = 100000) {
    int steps = 0;
    while (!engine_.idle() && steps < most) {
      Step();
      ++steps;
    }
    EXPECT_TRUE(engine_.idle()) << "not idle after " << steps << " steps";
    return steps;
  }
  // Submits, drains, and returns the answer.
  Answer Run(const worker::v1::Submit& submit) {
    answers_.erase(submit.key().request());
    Submit(submit);
    Drain();
    return answers_[submit.key().request()];
  }

 private:
  void Collect(worker::v1::StepReport report) {
    credits_ = report.credits();
    for (const worker::v1::AttemptReport& attempt : report.attempts()) {
      AddTo(attempt, &answers_[attempt.key().request()]);
    }
    reports_.push_back(std::move(report));
  }

  absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
  std::map<int64_t, Answer> answers_;
  worker::v1::Credits credits_;
  std::vector<worker::v1::StepReport> reports_;
  Engine engine_;
};

}  // namespace invar

#endif  // INVAR_WORKER_ENGINE_TESTING_ENGINE_HARNESS_H_
