#include "worker/engine/engine.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/ops.h"
#include "worker/engine/alternatives.h"

namespace invar {
namespace {

using worker::v1::AttemptKey;
using worker::v1::AttemptReport;
using worker::v1::StepReport;
using worker::v1::Terminal;

// Beyond this, prompts to be scored go in smaller chunks.
constexpr int64_t kLogitBytes = int64_t{64} << 20;

BatchLimits MakeBatchLimits(const Engine::Options& options,
                            int64_t vocab_size) {
  const int64_t rows =
      std::max<int64_t>(kLogitBytes / (vocab_size * sizeof(float)),
                        options.max_running_sequences);
  return {options.max_running_sequences, options.max_step_tokens, rows};
}

}  // namespace

Engine::Engine(const Options& options, std::unique_ptr<Model> model)
    : options_(options),
      model_(std::move(model)),
      vocab_size_(model_->config().vocab_size),
      submit_limits_{options.max_context_tokens, vocab_size_,
                     options.max_top_logprobs},
      cache_(model_->NewKvCache(options.kv_blocks)),
      pool_(options.kv_blocks),
      batcher_(MakeBatchLimits(options, vocab_size_), &pool_) {}

CreditAmount Engine::Share(int place) const {
  return {
      EvenShare(options_.max_running_sequences, place, options_.schedulers),
      EvenShare(options_.kv_blocks, place, options_.schedulers) * kBlockTokens};
}

void Engine::Open(SessionId session, int place, ReportSink sink) {
  sessions_.emplace(session,
                    Session{CreditLedger(Share(place)), std::move(sink)});
}

void Engine::Close(SessionId session) {
  std::vector<Sequence*> dropped;
  for (const auto& [id, sequence] : sequences_) {
    if (id.session == session) dropped.push_back(sequence.get());
  }
  for (Sequence* sequence : dropped) Forget(sequence);
  reports_.erase(session);
  sessions_.erase(session);
}

void Engine::Submit(SessionId session, const worker::v1::Submit& submit,
                    absl::Time received) {
  const auto found = sessions_.find(session);
  if (found == sessions_.end()) return;
  const SequenceId id(session, submit.key());
  if (sequences_.contains(id)) return;  // Runs already: a stale copy.
  const CreditAmount cost = SubmitCost(submit);
  const bool has_credit = found->second.ledger.Spend(cost);
  auto refuse = [&](Terminal::Reason reason, absl::string_view message) {
    AttemptReport& report = reports_[session][id];
    *report.mutable_key() = submit.key();
    ReportEnd(session, &report, cost, reason, message);
  };

  absl::StatusOr<std::unique_ptr<Sequence>> sequence =
      MakeSequence(session, submit, received, submit_limits_);
  if (!sequence.ok()) {
    return refuse(Terminal::INVALID, sequence.status().message());
  }
  if (BlocksFor((*sequence)->max_size) > pool_.total()) {
    return refuse(
        Terminal::INVALID,
        absl::StrCat("prompt and max_tokens need ", (*sequence)->max_size,
                     " tokens of KV cache; this worker holds ",
                     pool_.total() * kBlockTokens));
  }
  if (!has_credit) {
    return refuse(Terminal::REJECTED, "beyond this scheduler's credits");
  }
  Sequence* added =
      sequences_.emplace(id, *std::move(sequence)).first->second.get();
  batcher_.Add(added);
  if (added->finished()) {
    End(added, added->stopped ? Terminal::STOP : Terminal::LENGTH, "");
  }
}

void Engine::Refuse(SessionId session, const worker::v1::Submit& submit,
                    Terminal::Reason reason, absl::string_view message) {
  const auto found = sessions_.find(session);
  if (found == sessions_.end()) return;
  const CreditAmount cost = SubmitCost(submit);
  found->second.ledger.Spend(cost);
  AttemptReport& report = reports_[session][SequenceId(session, submit.key())];
  *report.mutable_key() = submit.key();
  ReportEnd(session, &report, cost, reason, message);
}

void Engine::Cancel(SessionId session, const AttemptKey& key) {
  const auto found = sequences_.find(SequenceId(session, key));
  if (found == sequences_.end()) return;
  End(found->second.get(), Terminal::CANCELLED, "");
}

void Engine::Preempt(SessionId session, const AttemptKey& key) {
  const auto found = sequences_.find(SequenceId(session, key));
  if (found != sequences_.end()) batcher_.Preempt(found->second.get());
}

StepSummary Engine::Step(absl::Time now) {
  EndExpired(now);
  StepSummary summary;
  const std::vector<PlannedSlice> plan = batcher_.Plan();
  if (!plan.empty()) {
    ++steps_;
    summary.computed = true;
    const std::vector<SliceHealth> health = Compute(plan);
    size_t row = 0;
    for (size_t i = 0; i < plan.size(); ++i) {
      Sequence* sequence = plan[i].sequence;
      const std::span<float> rows(logits_.data() + row * vocab_size_,
                                  plan[i].logit_rows * vocab_size_);
      row += plan[i].logit_rows;
      if (!sequence->decoding()) summary.prompt_tokens += plan[i].tokens;
      if (health[i] == SliceHealth::kFinite) {
        summary.generated_tokens += Advance(plan[i], rows);
      } else {
        End(sequence, Terminal::NOT_FINITE,
            absl::StrCat("the model produced a value that is not finite at a "
                         "position from ",
                         sequence->hold.computed));
      }
    }
  }
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

std::vector<SliceHealth> Engine::Compute(
    const std::vector<PlannedSlice>& plan) {
  std::vector<SequenceSlice> slices;
  slices.reserve(plan.size());
  int64_t rows = 0;
  for (const PlannedSlice& slice : plan) {
    const Sequence& sequence = *slice.sequence;
    slices.push_back({std::span(sequence.tokens)
                          .subspan(sequence.hold.computed, slice.tokens),
                      sequence.hold.computed, sequence.hold.block_ids,
                      slice.logit_rows});
    rows += slice.logit_rows;
  }
  logits_.resize(rows * vocab_size_);
  return model_->Forward(slices, *cache_, std::span(logits_));
}

int64_t Engine::Advance(const PlannedSlice& slice, std::span<float> rows) {
  Sequence* sequence = slice.sequence;
  sequence->hold.computed += slice.tokens;
  if (sequence->wants_scores()) {
    ScorePrompt(sequence, sequence->hold.computed - slice.logit_rows, rows);
  }
  batcher_.ShareWritten(sequence);
  int64_t sampled = 0;
  if (sequence->wants_output() && sequence->hold.computed == sequence->size()) {
    SampleNext(sequence, rows.last(vocab_size_));
    sampled = 1;
  }
  if (sequence->finished()) {
    End(sequence, sequence->stopped ? Terminal::STOP : Terminal::LENGTH, "");
  }
  return sampled;
}

void Engine::ScorePrompt(Sequence* sequence, int64_t first_position,
                         std::span<const float> rows) {
  const int64_t count = static_cast<int64_t>(rows.size()) / vocab_size_;
  for (int64_t i = 0; i < count; ++i) {
    // Row i scores the token that follows its position.
    const int64_t next = first_position + i + 1;
    if (next >= sequence->prompt_tokens) break;
    const std::span<const float> logits =
        rows.subspan(i * vocab_size_, vocab_size_);
    AttemptReport* report = Report(*sequence);
    if (report->prompt_logprobs_size() == 0) {
      report->set_prompt_position(static_cast<int32_t>(next));
    }
    report->add_prompt_logprobs(
        cpu::LogProb(logits, cpu::LogSumExp(logits), sequence->tokens[next]));
    sequence->scored_tokens = next + 1;
  }
}

void Engine::SampleNext(Sequence* sequence, std::span<float> logits) {
  const int64_t position = sequence->size();
  const int64_t limit = std::min(options_.tokenizer_ids, vocab_size_);
  const int32_t token = sequence->uses.Sample(logits, limit, sequence->sampling,
                                              sequence->seed, position);
  AttemptReport* report = Report(*sequence);
  if (report->token_ids_size() == 0) {
    report->set_position(static_cast<int32_t>(position));
  }
  report->add_token_ids(token);
  if (position == sequence->submitted_tokens) {
    report->set_cached_tokens(static_cast<int32_t>(
        std::min(*sequence->cached_tokens, sequence->prompt_tokens)));
  }
  if (sequence->logprobs || sequence->top_logprobs > 0) {
    const double log_sum_exp = cpu::LogSumExp(logits);
    if (sequence->logprobs) {
      report->add_logprobs(cpu::LogProb(logits, log_sum_exp, token));
    }
    if (sequence->top_logprobs > 0) {
      *report->add_alternatives() =
          LikeliestTokens(logits, limit, log_sum_exp, sequence->top_logprobs);
    }
  }
  sequence->tokens.push_back(token);
  sequence->uses.AddOutput(token);
  sequence->CheckStop();
}

AttemptReport* Engine::Report(const Sequence& sequence) {
  AttemptReport& report = reports_[sequence.id.session][sequence.id];
  *report.mutable_key() = sequence.key;
  return &report;
}

void Engine::ReportEnd(SessionId session, AttemptReport* report,
                       const CreditAmount& cost, Terminal::Reason reason,
                       absl::string_view message) {
  report->mutable_terminal()->set_reason(reason);
  report->mutable_terminal()->set_message(std::string(message));
  sessions_.at(session).ledger.GrantAgain(cost);
}

void Engine::End(Sequence* sequence, Terminal::Reason reason,
                 absl::string_view message) {
  ReportEnd(sequence->id.session, Report(*sequence), sequence->cost, reason,
            message);
  Forget(sequence);
}

void Engine::Forget(Sequence* sequence) {
  batcher_.Remove(sequence);
  sequences_.erase(sequence->id);
}

void Engine::SendReports() {
  for (auto& [session, attempts] : reports_) {
    const Session& to = sessions_.at(session);
    StepReport report;
    report.set_step(steps_);
    for (auto& [id, attempt] : attempts) {
      *report.add_attempts() = std::move(attempt);
    }
    report.mutable_credits()->set_sequences(to.ledger.granted().sequences);
    report.mutable_credits()->set_kv_tokens(to.ledger.granted().kv_tokens);
    to.sink(std::move(report));
  }
  reports_.clear();
}

}  // namespace invar
