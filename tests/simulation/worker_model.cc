#include "tests/simulation/worker_model.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/numerics.h"
#include "common/version.h"
#include "tests/simulation/truth.h"

namespace invar::simulation {

using scheduler::SequenceNumber;
using worker::v1::AttemptReport;
using worker::v1::Terminal;

v1::Numerics NumericsOf(int pool) {
  v1::Numerics numerics;
  auto* mode = numerics.mutable_plan()->add_entries();
  mode->set_name("mode");
  mode->set_value("DETERMINISTIC");
  numerics.set_tokenizer_digest("tokenizer");
  numerics.set_weights_digest(absl::StrCat("weights ", pool));
  numerics.set_fingerprint(Fingerprint(numerics));
  return numerics;
}

void WorkerModel::Open(int place, scheduler::LinkNumber link) {
  links_[place] = link;
  worker::v1::Hello hello;
  hello.set_protocol_version(kLinkProtocolVersion);
  hello.set_worker_id(id_);
  sessions_[place] = Session();
  sessions_[place].up.push_back(scheduler::WorkerAttached{link, hello});
  sessions_[place].up.push_back(scheduler::WorkerBeat{link, {}});
}

void WorkerModel::On(int place, const scheduler::SendConfigure& configure) {
  Session& session = sessions_.at(place);
  session.epoch = configure.epoch;
  const CreditAmount share = {
      share_factor * EvenShare(kSequences, place, kSchedulers),
      share_factor * EvenShare(kBlocks, place, kSchedulers) * kBlockTokens};
  session.ledger.emplace(share);
  worker::v1::Loaded loaded;
  const int pool = claimed_pool < 0 ? pool_ : claimed_pool;
  *loaded.mutable_numerics() = NumericsOf(pool);
  loaded.set_config_digest("config");
  loaded.mutable_capacity()->set_block_tokens(kBlockTokens);
  loaded.mutable_capacity()->set_sequences(kSequences);
  loaded.mutable_capacity()->set_kv_blocks(kBlocks);
  loaded.set_max_context_tokens(4096);
  loaded.mutable_credits()->set_sequences(share.sequences);
  loaded.mutable_credits()->set_kv_tokens(share.kv_tokens);
  session.up.push_back(scheduler::WorkerLoaded{links_[place], loaded});
  if (leaving_) session.up.push_back(scheduler::WorkerLeaving{links_[place]});
}

void WorkerModel::On(int place, const scheduler::SendSubmit& submit) {
  Session& session = sessions_.at(place);
  if (submit.key.epoch() != session.epoch) {
    broken_ = absl::StrCat(id_, " is sent a submit of epoch ",
                           submit.key.epoch(), " in ", session.epoch);
    return;
  }
  const auto tokens = static_cast<int64_t>(submit.request->prompt.size() +
                                           submit.delivered.size());
  Session::Running running{
      submit, tokens, 1, {1, BlocksFor(tokens) * kBlockTokens}};
  if (!session.ledger->Spend(running.cost)) {
    broken_ = absl::StrCat(id_, " is sent more than its credits");
  }
  const SequenceNumber number = submit.key.request();
  session.running[number] = std::move(running);
  CheckCapacity();
  if (!leaving_) return;
  AttemptReport attempt;
  *attempt.mutable_key() = submit.key;
  End(&session, number, Terminal::REJECTED, &attempt);
  Report(place, attempt);
}

void WorkerModel::CheckCapacity() {
  CreditAmount used;
  for (const auto& [place, session] : sessions_) {
    for (const auto& [number, running] : session.running) used += running.cost;
  }
  if (!CreditAmount{kSequences, kBlocks * kBlockTokens}.Covers(used)) {
    broken_ = absl::StrCat(id_, " is overbooked");
  }
}

void WorkerModel::On(int place, const scheduler::SendCancel& cancel) {
  Session& session = sessions_.at(place);
  const auto found = session.running.find(cancel.key.request());
  if (found == session.running.end() ||
      found->second.submit.key.attempt() != cancel.key.attempt()) {
    return;  // Stale.
  }
  AttemptReport attempt;
  *attempt.mutable_key() = cancel.key;
  End(&session, cancel.key.request(), Terminal::CANCELLED, &attempt);
  Report(place, attempt);
}

void WorkerModel::End(Session* session, SequenceNumber number,
                      Terminal::Reason reason, AttemptReport* attempt) {
  session->ledger->GrantAgain(session->running.at(number).cost);
  session->running.erase(number);
  attempt->mutable_terminal()->set_reason(reason);
}

void WorkerModel::Report(int place, const AttemptReport& attempt) {
  Session& session = sessions_.at(place);
  worker::v1::StepReport report;
  *report.add_attempts() = attempt;
  const CreditAmount& granted = session.ledger->granted();
  report.mutable_credits()->set_sequences(granted.sequences);
  report.mutable_credits()->set_kv_tokens(granted.kv_tokens);
  session.up.push_back(scheduler::WorkerReported{links_[place], report});
}

void WorkerModel::Beat() {
  for (auto& [place, session] : sessions_) {
    session.up.push_back(scheduler::WorkerBeat{links_[place], {}});
  }
}

void WorkerModel::Leave() {
  leaving_ = true;
  for (auto& [place, session] : sessions_) {
    session.up.push_back(scheduler::WorkerLeaving{links_[place]});
  }
}

bool WorkerModel::idle() const {
  return std::all_of(sessions_.begin(), sessions_.end(), [](const auto& one) {
    return one.second.running.empty();
  });
}

void WorkerModel::Step(std::mt19937& random) {
  for (auto& [place, session] : sessions_) {
    std::vector<SequenceNumber> numbers;
    for (const auto& [number, running] : session.running) {
      if (random() % 4 != 0) numbers.push_back(number);
    }
    for (const SequenceNumber number : numbers) {
      Session::Running& running = session.running.at(number);
      const scheduler::RequestSpec& spec = *running.submit.request;
      const auto prompt = static_cast<int64_t>(spec.prompt.size());
      const int64_t end = prompt + running.submit.max_tokens;
      AttemptReport attempt;
      *attempt.mutable_key() = running.submit.key;
      if (running.submit.prompt_logprobs && running.scored < prompt) {
        // A page a step; the tokens come behind the last.
        attempt.set_prompt_position(static_cast<int32_t>(running.scored));
        for (int i = 0; i < 9 && running.scored < prompt; ++i) {
          attempt.add_prompt_logprobs(
              ScoreAt(pool_, spec.seed, running.scored++));
        }
      } else {
        attempt.set_position(static_cast<int32_t>(running.next));
        const int count = 1 + static_cast<int>(random() % 3);
        for (int i = 0; i < count && running.next < end; ++i) {
          attempt.add_token_ids(
              TokenAt(pool_, spec.seed, running.submit.index, running.next++));
        }
        if (running.next == end) {
          End(&session, number, Terminal::LENGTH, &attempt);
        }
      }
      Report(place, attempt);
    }
  }
}

}  // namespace invar::simulation
