#include "tests/simulation/client_model.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/simulation/truth.h"
#include "tests/simulation/worker_model.h"

namespace invar::simulation {

void ClientModel::Break(std::string what) {
  if (broken_.empty()) broken_ = absl::StrCat(spec_.request_id, ": ", what);
}

int64_t ClientModel::StopAfter(int32_t index) const {
  const auto draw = static_cast<int64_t>((spec_.seed * 7 + index) % 5);
  return draw == 0 ? 1 + *spec_.max_tokens / 2 : 0;
}

std::shared_ptr<const scheduler::RequestSpec> ClientModel::NextRequest(
    scheduler::RequestNumber new_number) {
  number = new_number;
  state_ = State::kStreaming;
  auto next = std::make_shared<scheduler::RequestSpec>(spec_);
  next->number = number;
  if (!fingerprint_.empty() && !forgets_fingerprint) {
    next->expected_fingerprint = fingerprint_;
  }
  for (Answer& answer : answers_) {
    answer.again = 0;
    if (spec_.answers > 1) {
      answer.again = answer.tokens.size();
    } else if (!answer.tokens.empty()) {
      next->resume_tokens = answer.tokens;
      next->prompt_logprobs = false;
    }
  }
  return next;
}

void ClientModel::Lose() {
  on_the_way.clear();
  last_place = place;
  if (state_ == State::kStreaming) state_ = State::kWaiting;
}

void ClientModel::Take(const News& news) {
  if (state_ != State::kStreaming) {
    return Break("is told something when nothing is due");
  }
  std::visit([this](const auto& one) { On(one); }, news);
}

void ClientModel::On(const scheduler::Begin& begin) {
  if (!fingerprint_.empty() && begin.fingerprint != fingerprint_) {
    Break("begun by one pool, gone on with by another");
  }
  announced_ = begin.fingerprint;
}

void ClientModel::Check(float value, bool is_score, int32_t index,
                        int64_t position) {
  const auto truth = [&](int pool) {
    return is_score
               ? ScoreAt(pool, spec_.seed, position)
               : static_cast<float>(TokenAt(pool, spec_.seed, index, position));
  };
  if (pool_ < 0) {
    for (int pool = 0; pool < kPools; ++pool) {
      if (value == truth(pool)) pool_ = pool;
    }
    fingerprint_ = announced_;
    if (pool_ < 0 || fingerprint_ != NumericsOf(pool_).fingerprint()) {
      return Break("the first value is not of the pool that was announced");
    }
  }
  if (value != truth(pool_)) {
    Break(absl::StrCat("got ", value, " for ", truth(pool_), " at position ",
                       position, " of answer ", index));
  }
}

void ClientModel::On(const scheduler::Deliver& deliver) {
  const auto& report = deliver.report;
  for (int i = 0; i < report.prompt_logprobs_size(); ++i) {
    const int32_t position = report.prompt_position() + i;
    if (position > scores_ + 1) return Break("a score is missing");
    scores_ = std::max(scores_, position);
    Check(report.prompt_logprobs(i), true, 0, position);
  }
  Answer& answer = answers_[deliver.index];
  const auto prompt = static_cast<int64_t>(spec_.prompt.size());
  for (int i = 0; i < report.token_ids_size(); ++i) {
    const int64_t at = static_cast<int64_t>(answer.tokens.size()) -
                       static_cast<int64_t>(answer.again);
    if (report.position() + i != prompt + at) {
      return Break(absl::StrCat("position ", report.position() + i,
                                " comes where ", prompt + at, " is due"));
    }
    Check(static_cast<float>(report.token_ids(i)), false, deliver.index,
          prompt + at);
    if (answer.again > 0) {
      --answer.again;
    } else {
      answer.tokens.push_back(report.token_ids(i));
    }
  }
}

void ClientModel::On(const scheduler::Finish& finish) {
  if (absl::IsUnavailable(finish.status) ||
      absl::IsAlreadyExists(finish.status) ||
      absl::IsResourceExhausted(finish.status)) {
    return Lose();
  }
  if (absl::IsFailedPrecondition(finish.status) ||
      absl::IsAborted(finish.status)) {
    state_ = State::kRefused;
    return;
  }
  if (!finish.status.ok()) {
    return Break(std::string(finish.status.message()));
  }
  state_ = State::kComplete;
  if (spec_.prompt_logprobs &&
      scores_ + 1 < static_cast<int32_t>(spec_.prompt.size())) {
    Break("ended without all scores");
  }
  for (int32_t index = 0; index < spec_.answers; ++index) {
    const Answer& answer = answers_[index];
    const int64_t stop = StopAfter(index);
    const int64_t due = stop > 0 ? stop : *spec_.max_tokens;
    if (answer.again > 0 || static_cast<int64_t>(answer.tokens.size()) != due) {
      Break(absl::StrCat("answer ", index, " ended with ", answer.tokens.size(),
                         " of ", due, " tokens"));
    }
  }
}

}  // namespace invar::simulation
