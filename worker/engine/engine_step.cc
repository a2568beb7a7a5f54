// The engine's steps: what is asked of the model, and what becomes of its
// answers.
#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/engine/engine.h"

namespace invar {
namespace {

using worker::v1::AttemptReport;
using worker::v1::Terminal;

// Stands for a token that a step in flight chooses.
constexpr int32_t kUnknownToken[] = {0};

}  // namespace

StepSummary Engine::Step(absl::Time now) {
  EndExpired(now);
  StepSummary summary;
  while (static_cast<int64_t>(in_flight_.size()) < model_->StepsInFlight() &&
         StartStep()) {
  }
  if (!in_flight_.empty()) FinishStep(&summary);
  SendReports();
  summary.running = batcher_.running();
  summary.waiting = batcher_.waiting();
  summary.preemptions = preemptions() - preemptions_reported_;
  preemptions_reported_ = preemptions();
  summary.kv_blocks_used = pool_.used();
  summary.kv_blocks_cached = pool_.cached();
  summary.kv_blocks_total = pool_.total();
  return summary;
}

void Engine::EndExpired(absl::Time now) {
  std::vector<Sequence*> expired;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->deadline <= now) expired.push_back(sequence.get());
  }
  for (Sequence* sequence : expired) End(sequence, Terminal::DEADLINE, "");
}

bool Engine::StartStep() {
  StartedStep step;
  step.slices = batcher_.Plan(/*ahead=*/!in_flight_.empty());
  if (step.slices.empty()) return false;
  std::vector<SequenceSlice> slices;
  slices.reserve(step.slices.size());
  row_requests_.clear();
  for (const PlannedSlice& slice : step.slices) {
    slices.push_back(StartSlice(slice));
  }
  for (const RowRequest& request : row_requests_) {
    step.tasks.push_back(request.task);
  }
  model_->Start(slices, *cache_, std::min(options_.tokenizer_ids, vocab_size_),
                row_requests_);
  in_flight_.push_back(std::move(step));
  return true;
}

SequenceSlice Engine::StartSlice(const PlannedSlice& slice) {
  Sequence& sequence = *slice.sequence;
  const int64_t end = slice.first + slice.tokens;
  SequenceSlice started;
  started.first_position = slice.first;
  started.block_ids = sequence.hold.block_ids;
  started.logit_rows = slice.logit_rows;
  if (end <= sequence.size()) {
    started.token_ids =
        std::span(sequence.tokens).subspan(slice.first, slice.tokens);
  } else {
    started.token_ids = kUnknownToken;
    started.chosen_row = sequence.in_flight.chosen_row;
  }
  InFlight in_flight = sequence.in_flight;
  for (int64_t p = end - slice.logit_rows; p < end; ++p) {
    row_requests_.push_back(RequestOf(sequence, p));
    const RowTask task = row_requests_.back().task;
    if (task == RowTask::kScore) ++in_flight.scored;
    if (task == RowTask::kChoose) {
      ++in_flight.chosen;
      in_flight.chosen_row = static_cast<int64_t>(row_requests_.size()) - 1;
    }
  }
  in_flight.computed += slice.tokens;
  sequence.in_flight = in_flight;
  return started;
}

RowRequest Engine::RequestOf(const Sequence& sequence, int64_t position) const {
  const int64_t next = position + 1;
  RowRequest request;
  if (sequence.wants_scores() && next < sequence.prompt_tokens) {
    request.task = RowTask::kScore;
    request.scored_token = sequence.tokens[next];
  } else if (sequence.wants_output() && next == sequence.planned_size()) {
    request.task = RowTask::kChoose;
    request.sampling = sequence.sampling;
    request.seed = sequence.seed;
    request.position = static_cast<uint64_t>(next);
    request.uses = sequence.uses.list();
    request.penalties = sequence.uses.penalties();
    request.log_prob = sequence.logprobs;
    request.likeliest = sequence.top_logprobs;
  }
  return request;
}

void Engine::FinishStep(StepSummary* summary) {
  const StartedStep step = std::move(in_flight_.front());
  in_flight_.pop_front();
  row_answers_.assign(step.tasks.size(), RowAnswer());
  const std::vector<SliceHealth> health = model_->Finish(row_answers_);
  ++steps_;
  summary->computed = true;
  size_t row = 0;
  for (size_t i = 0; i < step.slices.size(); ++i) {
    const PlannedSlice& slice = step.slices[i];
    const size_t rows = slice.logit_rows;
    if (!slice.decodes) summary->prompt_tokens += slice.tokens;
    if (slice.sequence == nullptr) {
      // Ended or preempted since.
    } else if (health[i] == SliceHealth::kFinite) {
      summary->generated_tokens +=
          Advance(slice, std::span(step.tasks).subspan(row, rows),
                  std::span(row_answers_).subspan(row, rows));
    } else {
      End(slice.sequence, Terminal::NOT_FINITE,
          absl::StrCat("the model produced a value that is not finite at a "
                       "position from ",
                       slice.first));
    }
    row += rows;
  }
}

int64_t Engine::Advance(const PlannedSlice& slice,
                        std::span<const RowTask> tasks,
                        std::span<const RowAnswer> answers) {
  Sequence* sequence = slice.sequence;
  sequence->hold.computed += slice.tokens;
  sequence->in_flight.computed -= slice.tokens;
  int64_t chosen = 0;
  for (size_t i = 0; i < tasks.size(); ++i) {
    if (tasks[i] != RowTask::kScore) continue;
    --sequence->in_flight.scored;
    AddScore(sequence, answers[i].token.log_prob);
  }
  batcher_.ShareWritten(sequence);
  if (!tasks.empty() && tasks.back() == RowTask::kChoose) {
    --sequence->in_flight.chosen;
    AddToken(sequence, answers.back());
    chosen = 1;
  }
  if (sequence->finished()) {
    End(sequence, sequence->stopped ? Terminal::STOP : Terminal::LENGTH, "");
  }
  return chosen;
}

void Engine::AddScore(Sequence* sequence, float log_prob) {
  AttemptReport* report = Report(*sequence);
  if (report->prompt_logprobs_size() == 0) {
    report->set_prompt_position(static_cast<int32_t>(sequence->scored_tokens));
  }
  report->add_prompt_logprobs(log_prob);
  ++sequence->scored_tokens;
}

void Engine::AddToken(Sequence* sequence, const RowAnswer& answer) {
  const int64_t position = sequence->size();
  const int32_t token = answer.token.token_id;
  AttemptReport* report = Report(*sequence);
  if (report->token_ids_size() == 0) {
    report->set_position(static_cast<int32_t>(position));
  }
  report->add_token_ids(token);
  if (position == sequence->submitted_tokens) {
    report->set_cached_tokens(static_cast<int32_t>(
        std::min(*sequence->cached_tokens, sequence->prompt_tokens)));
  }
  if (sequence->logprobs) report->add_logprobs(answer.token.log_prob);
  if (sequence->top_logprobs > 0) {
    worker::v1::Alternatives* likeliest = report->add_alternatives();
    for (const TokenLogProb& other : answer.likeliest) {
      likeliest->add_token_ids(other.token_id);
      likeliest->add_logprobs(other.log_prob);
    }
  }
  sequence->tokens.push_back(token);
  sequence->uses.AddOutput(token);
  sequence->CheckStop();
}

}  // namespace invar
