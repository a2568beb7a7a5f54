#include "worker/engine/engine.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"

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
      const size_t rows = plan[i].logit_rows;
      if (!sequence->decoding()) summary.prompt_tokens += plan[i].tokens;
      if (health[i] == SliceHealth::kFinite) {
        summary.generated_tokens +=
            Advance(plan[i], std::span(row_requests_).subspan(row, rows),
                    std::span(row_answers_).subspan(row, rows));
      } else {
        End(sequence, Terminal::NOT_FINITE,
            absl::StrCat("the model produced a value that is not finite at a "
                         "position from ",
                         sequence->hold.computed));
      }
      row += rows;
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
  row_requests_.clear();
  for (const PlannedSlice& slice : plan) {
    const Sequence& sequence = *slice.sequence;
    const int64_t first = sequence.hold.computed;
    slices.push_back({std::span(sequence.tokens).subspan(first, slice.tokens),
                      first, sequence.hold.block_ids, slice.logit_rows});
    const int64_t end = first + slice.tokens;
    for (int64_t p = end - slice.logit_rows; p < end; ++p) {
      row_requests_.push_back(RequestOf(sequence, p));
    }
  }
  row_answers_.assign(row_requests_.size(), RowAnswer());
  return model_->Answer(slices, *cache_,
                        std::min(options_.tokenizer_ids, vocab_size_),
                        row_requests_, row_answers_);
}

RowRequest Engine::RequestOf(const Sequence& sequence, int64_t position) const {
  const int64_t next = position + 1;
  RowRequest request;
  if (sequence.wants_scores() && next < sequence.prompt_tokens) {
    request.task = RowTask::kScore;
    request.scored_token = sequence.tokens[next];
  } else if (sequence.wants_output() && next == sequence.size()) {
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

int64_t Engine::Advance(const PlannedSlice& slice,
                        std::span<const RowRequest> rows,
                        std::span<const RowAnswer> answers) {
  Sequence* sequence = slice.sequence;
  sequence->hold.computed += slice.tokens;
  int64_t chosen = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].task == RowTask::kScore) {
      AddScore(sequence, answers[i].token.log_prob);
    }
  }
  batcher_.ShareWritten(sequence);
  if (!rows.empty() && rows.back().task == RowTask::kChoose) {
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
