#include "scheduler/api/answer.h"

#include <algorithm>
#include <utility>

#include "common/digest.h"
#include "common/seed.h"
#include "common/status.h"

namespace invar::scheduler {

using worker::v1::Terminal;

Answer::Answer(std::shared_ptr<const RequestSpec> spec, std::string model_name,
               std::vector<Sample> samples, std::shared_ptr<AnswerSink> sink)
    : spec_(std::move(spec)),
      model_name_(std::move(model_name)),
      sink_(std::move(sink)) {
  for (Sample& sample : samples) states_.push_back({std::move(sample)});
}

bool Answer::has_output() const {
  return std::any_of(states_.begin(), states_.end(), [](const State& state) {
    return state.sample.has_output();
  });
}

bool Answer::reached_length() const {
  return std::any_of(states_.begin(), states_.end(), [](const State& state) {
    return state.finish.reason() == v1::Finish::LENGTH;
  });
}

void Answer::Handle(const Begin& action) {
  fingerprint_ = action.fingerprint;
  max_tokens_ = action.max_tokens;
  sink_->OnBegin(fingerprint_);
}

bool Answer::Handle(const Deliver& action) {
  State& state = states_[action.index];
  if (state.ended) return false;
  const auto& report = action.report;
  // Not of a later attempt, which reads what the lost one computed.
  if (report.token_ids_size() > 0 && !state.sample.has_output()) {
    state.cached_tokens = report.cached_tokens();
  }
  if (report.prompt_logprobs_size() > 0) {
    v1::GenerateResponse event;
    auto* page = event.mutable_prompt_logprobs();
    page->set_position(report.prompt_position());
    *page->mutable_logprobs() = report.prompt_logprobs();
    sink_->OnEvent(std::move(event));
  }
  if (report.token_ids_size() > 0 && !state.sample.stopped()) {
    v1::GenerateResponse event;
    *event.mutable_delta() = state.sample.Append(report);
    sink_->OnEvent(std::move(event));
  }
  if (!state.sample.stopped()) return false;
  End(&state, Terminal::STOP);
  return true;
}

void Answer::Handle(const AnswerEnded& action) {
  State& state = states_[action.index];
  if (!state.ended) End(&state, action.reason);
}

void Answer::End(State* state, Terminal::Reason reason) {
  state->ended = true;
  state->finish = state->sample.MakeFinish(reason);
  v1::GenerateResponse event;
  auto* delta = event.mutable_delta();
  delta->set_index(static_cast<int32_t>(state - states_.data()));
  delta->set_position(state->sample.position());
  delta->set_text(state->sample.End());
  if (!delta->text().empty()) sink_->OnEvent(std::move(event));
}

void Answer::Handle(const Finish& action) {
  if (action.status.ok()) {
    SendFinal();
    sink_->OnEnd(grpc::Status::OK);
    return;
  }
  Error error(action.status.code(), action.error_reason,
              absl::string_view(action.status.message()));
  if (action.retry_after > absl::ZeroDuration()) {
    error.RetryAfter(action.retry_after);
  }
  sink_->OnEnd(error);
}

void Answer::SendFinal() {
  v1::GenerateResponse event;
  auto* final = event.mutable_final();
  auto* usage = final->mutable_usage();
  usage->set_prompt_tokens(static_cast<int32_t>(spec_->prompt.size()));
  // The later answers find the first one's prompt: that is no saving of theirs.
  usage->set_cached_tokens(states_[0].cached_tokens);
  for (size_t i = 0; i < states_.size(); ++i) {
    const auto index = static_cast<int32_t>(i);
    auto* completion = final->add_completions();
    completion->set_index(index);
    *completion->mutable_finish() = states_[i].finish;
    *completion->mutable_receipt() = MakeReceipt(index);
    usage->set_output_tokens(
        usage->output_tokens() +
        static_cast<int32_t>(states_[i].sample.output().size()));
  }
  sink_->OnEvent(std::move(event));
}

v1::Receipt Answer::MakeReceipt(int32_t index) const {
  v1::Receipt receipt;
  receipt.set_fingerprint(fingerprint_);
  receipt.set_request_id(spec_->request_id);
  receipt.set_seed(AnswerSeed(spec_->seed, index));
  receipt.set_index(index);
  *receipt.mutable_sampling() = spec_->sampling;
  receipt.mutable_sampling()->set_max_tokens(max_tokens_);
  receipt.set_prompt_digest(TokenDigest(spec_->prompt));
  receipt.set_output_digest(TokenDigest(states_[index].sample.output()));
  receipt.set_model(model_name_);
  return receipt;
}

}  // namespace invar::scheduler
