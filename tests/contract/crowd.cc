#include "tests/contract/crowd.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace invar::contract {
namespace {

using worker::v1::Terminal;

constexpr int64_t kProbeId = 1;
constexpr int64_t kFirstStrangerId = 100;
// A stranger's prompt and output at most, rounded up.
constexpr int64_t kStrangerBlocks = 9;
// Past this, something hangs.
constexpr int64_t kMaxSteps = 20000;
constexpr size_t kOftenTokens = 16;
constexpr int64_t kNeighbourEvery = 6;
// Strangers behind the probe stop here, one in so many at a stop id.
constexpr int64_t kShortStay = 40;
constexpr int64_t kStopsEvery = 4;
constexpr int64_t kStopAfter = 4;

}  // namespace

int64_t CrowdBlocks(const Cell& cell) {
  const Request probe = Probe(cell);
  const int64_t own =
      BlocksFor(probe.submit.prompt_tokens() + probe.submit.max_tokens());
  // Under pressure all can start, and not all can grow by two.
  if (cell.preemption == Preemption::kPressure) {
    return own + cell.batch + std::max(1, cell.batch / 2);
  }
  return own + kMaxPrefixBlocks + cell.batch * kStrangerBlocks;
}

int64_t CrowdStepTokens(const Cell& cell) {
  const int64_t least = cell.batch > 1 ? cell.batch + 1 : 1;
  return std::max<int64_t>(least, cell.batch - 1 + cell.chunk);
}

Crowd::Crowd(const Cell& cell, uint64_t draw, EngineHarness* engine,
             References* references)
    : cell_(cell),
      random_(draw),
      engine_(engine),
      references_(references),
      strangers_(references->extent().strangers) {
  std::iota(strangers_.begin(), strangers_.end(), 0);
  random_.Shuffle(strangers_);
}

Comparison Crowd::Run() {
  FillPrefixCache();
  next_id_ = kFirstStrangerId;
  for (int i = 0; i < cell_.slot && AdmitStranger(/*stays=*/true); ++i) {
  }
  StartStrangers();
  const Request probe = Probe(cell_);
  Admit(probe, references_->Alone(cell_.setting, probe), kProbeId);
  TakePlacesAgain();
  while (!engine_->answer(kProbeId).terminal.has_value()) {
    Step();
    if (steps_ > kMaxSteps) {
      Wrong("the probe does not end");
      return result_;
    }
    TakePlacesAgain();
    PreemptSomebody();
  }
  Finish();
  CheckSituation();
  return result_;
}

void Crowd::Admit(Request request, const Answer& alone, int64_t id) {
  request.submit.mutable_key()->set_request(id);
  engine_->Submit(request.submit);
  guests_.emplace(id, Guest{std::move(request), &alone});
}

bool Crowd::AdmitStranger(bool stays) {
  Request request = Stranger(strangers_[next_stranger_ % strangers_.size()],
                             references_->extent().stranger_tokens);
  if (!IsAffordable(request)) return false;
  ++next_stranger_;
  const Answer& alone = references_->Alone(cell_.setting, request);
  if (!stays) {
    const int64_t tokens = 1 + random_.Below(kShortStay);
    request.submit.set_max_tokens(static_cast<int32_t>(tokens));
    if (random_.Below(kStopsEvery) == 0 && tokens > kStopAfter) {
      // One of its own, beyond min_tokens.
      request.submit.mutable_sampling()->add_stop_token_ids(
          alone.token_ids[kStopAfter + random_.Below(tokens - kStopAfter)]);
    }
  }
  Admit(std::move(request), alone, next_id_++);
  return true;
}

bool Crowd::IsAffordable(const Request& request) const {
  int64_t blocks = BlocksFor(request.submit.prompt_tokens());
  for (const auto& [id, guest] : guests_) {
    if (engine_->answer(id).terminal.has_value()) continue;
    blocks += BlocksFor(guest.request.submit.prompt_tokens());
  }
  // The probe's prompt may be to come.
  if (!guests_.contains(kProbeId)) {
    blocks += BlocksFor(Probe(cell_).submit.prompt_tokens());
  }
  return blocks <= CrowdBlocks(cell_);
}

void Crowd::FillPrefixCache() {
  if (cell_.prefix <= 0) return;
  worker::v1::Submit submit = ProbePrefix(cell_).submit;
  submit.mutable_key()->set_request(2);
  engine_->Run(submit);
}

void Crowd::StartStrangers() {
  for (int64_t i = 0; i < kMaxSteps; ++i) {
    const bool all =
        std::all_of(guests_.begin(), guests_.end(), [this](const auto& guest) {
          const Answer& answer = engine_->answer(guest.first);
          return !answer.token_ids.empty() || answer.terminal.has_value();
        });
    if (all) return;
    engine_->Step();
  }
  Wrong("the strangers do not start");
}

void Crowd::Step() {
  const StepSummary summary = engine_->Step();
  ++steps_;
  most_running_ = std::max(most_running_, summary.running);
}

void Crowd::TakePlacesAgain() {
  const bool stay = cell_.preemption == Preemption::kPressure;
  while (engine_->engine().sequences() < cell_.batch &&
         !engine_->answer(kProbeId).terminal.has_value() &&
         AdmitStranger(stay)) {
  }
}

void Crowd::PreemptSomebody() {
  if (engine_->answer(kProbeId).terminal.has_value()) return;
  if (cell_.preemption == Preemption::kNeighbours) {
    if (random_.Below(kNeighbourEvery) != 0) return;
    std::vector<int64_t> running;
    for (const auto& [id, guest] : guests_) {
      if (id != kProbeId && !engine_->answer(id).terminal.has_value()) {
        running.push_back(id);
      }
    }
    if (running.empty()) return;
    engine_->Preempt(
        running[random_.Below(static_cast<int64_t>(running.size()))]);
  } else if (TimeToPreemptProbe()) {
    preempted_at_ = engine_->answer(kProbeId).token_ids.size();
    engine_->Preempt(kProbeId);
  }
}

bool Crowd::TimeToPreemptProbe() {
  const worker::v1::Submit& submit = guests_.at(kProbeId).request.submit;
  const size_t tokens = engine_->answer(kProbeId).token_ids.size();
  if (cell_.preemption == Preemption::kInPrompt) {
    return tokens == 0 && engine_->engine().preemptions() == 0;
  }
  // Once at each number of tokens.
  if (tokens == 0 || tokens == preempted_at_) return false;
  const int64_t in_block = (submit.prompt_tokens() + tokens) % kBlockTokens;
  switch (cell_.preemption) {
    case Preemption::kFirstToken:
      return tokens == 1;
    case Preemption::kBlockEnd:
      return in_block == kBlockTokens - 1;
    case Preemption::kBlockFull:
      return in_block == 0;
    case Preemption::kBlockStart:
      return in_block == 1;
    case Preemption::kLastToken:
      return tokens + 1 == static_cast<size_t>(submit.max_tokens());
    case Preemption::kOften:
      return tokens % kOftenTokens == 0;
    default:
      return false;
  }
}

void Crowd::Finish() {
  for (auto& [id, guest] : guests_) {
    if (engine_->answer(id).terminal.has_value()) continue;
    engine_->Cancel(id);
    guest.cancelled = true;
  }
  engine_->Drain();
  for (const auto& [id, guest] : guests_) {
    result_ += Compare(absl::StrCat("request ", id, ", ", guest.request.name),
                       guest.request.submit, engine_->answer(id), *guest.alone,
                       guest.cancelled);
  }
}

// A cell that did not do what its name says proves nothing.
void Crowd::CheckSituation() {
  const Engine& engine = engine_->engine();
  result_.preemptions = engine.preemptions();
  if (engine.kv_blocks_used() != 0) {
    Wrong(absl::StrCat(engine.kv_blocks_used(), " blocks are still used"));
  }
  if (cell_.preemption != Preemption::kNone && result_.preemptions == 0) {
    Wrong("nobody was preempted");
  }
  // Who runs, and what stays cached, is then the engine's to say.
  if (cell_.preemption == Preemption::kPressure) return;
  if (most_running_ != cell_.batch) {
    Wrong(absl::StrCat("at most ", most_running_, " sequences ran at once"));
  }
  const int64_t hits = engine_->answer(kProbeId).cached_tokens / kBlockTokens;
  if (hits != std::max(cell_.prefix, 0)) {
    Wrong(absl::StrCat("the prefix cache held ", hits, " blocks"));
  }
}

}  // namespace invar::contract
