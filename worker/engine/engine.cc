#include "worker/engine/engine.h"

#include <algorithm>
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

Engine::Engine(const Options& options, std::unique_ptr<Model> model,
               std::unique_ptr<KvCache> cache)
    : options_(options),
      model_(std::move(model)),
      vocab_size_(model_->config().vocab_size),
      submit_limits_{options.max_context_tokens, vocab_size_,
                     options.max_top_logprobs},
      cache_(cache != nullptr ? std::move(cache)
                              : model_->NewKvCache(options.kv_blocks)),
      pool_(options.kv_blocks),
      batcher_(MakeBatchLimits(options, vocab_size_), &pool_) {}

Engine::~Engine() {
  // They write to the cache, which goes now.
  for (const StartedStep& step : in_flight_) {
    row_answers_.assign(step.tasks.size(), RowAnswer());
    model_->Finish(row_answers_);
  }
}

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
  if (found == sequences_.end()) return;
  DropInFlight(found->second.get());
  batcher_.Preempt(found->second.get());
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
  DropInFlight(sequence);
  batcher_.Remove(sequence);
  sequences_.erase(sequence->id);
}

void Engine::DropInFlight(Sequence* sequence) {
  for (StartedStep& step : in_flight_) {
    for (PlannedSlice& slice : step.slices) {
      if (slice.sequence == sequence) slice.sequence = nullptr;
    }
  }
  sequence->in_flight = InFlight();
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
