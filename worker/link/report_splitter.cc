#include "worker/link/report_splitter.h"

#include <algorithm>
#include <utility>

namespace invar {
namespace {

using worker::v1::AttachRequest;
using worker::v1::AttemptReport;
using worker::v1::StepReport;

// Tags, lengths and credits around a message's attempts.
constexpr int64_t kEnvelopeBytes = 128;
// Key, positions, tags and lengths of one attempt.
constexpr int64_t kAttemptBytes = 128;
// A terminal's message is a sentence, but nothing else bounds it.
constexpr size_t kTerminalMessageBytes = 1024;

// Collects pieces of attempts into messages.
class Packer {
 public:
  Packer(const StepReport& report, int64_t max_bytes)
      : step_(report.step()),
        credits_(report.credits()),
        room_(max_bytes - kEnvelopeBytes) {}

  // The most bytes that a piece may take.
  int64_t room() const { return room_; }

  void Add(AttemptReport piece) {
    // The piece, its tag and its length.
    const int64_t bytes = static_cast<int64_t>(piece.ByteSizeLong()) + 8;
    if (messages_.empty() || used_ + bytes > room_) {
      StepReport* part = messages_.emplace_back().mutable_step_report();
      part->set_step(step_);
      *part->mutable_credits() = credits_;
      used_ = 0;
    }
    used_ += bytes;
    *messages_.back().mutable_step_report()->add_attempts() = std::move(piece);
  }

  std::vector<AttachRequest> Take() { return std::move(messages_); }

 private:
  const int64_t step_;
  const worker::v1::Credits credits_;
  const int64_t room_;
  int64_t used_ = 0;
  std::vector<AttachRequest> messages_;
};

void AddPromptPages(const AttemptReport& attempt, Packer* packer) {
  const int64_t page =
      (packer->room() - kAttemptBytes) / static_cast<int64_t>(sizeof(float));
  const auto& values = attempt.prompt_logprobs();
  for (int64_t first = 0; first < values.size(); first += page) {
    AttemptReport piece;
    *piece.mutable_key() = attempt.key();
    piece.set_prompt_position(attempt.prompt_position() +
                              static_cast<int32_t>(first));
    const int64_t last = std::min<int64_t>(values.size(), first + page);
    piece.mutable_prompt_logprobs()->Add(values.begin() + first,
                                         values.begin() + last);
    packer->Add(std::move(piece));
  }
}

// One token a piece; a step writes one token of an attempt.
void AddTokens(const AttemptReport& attempt, Packer* packer) {
  for (int i = 0; i < attempt.token_ids_size(); ++i) {
    AttemptReport piece;
    *piece.mutable_key() = attempt.key();
    piece.set_position(attempt.position() + i);
    piece.add_token_ids(attempt.token_ids(i));
    if (i < attempt.logprobs_size()) piece.add_logprobs(attempt.logprobs(i));
    if (i < attempt.alternatives_size()) {
      *piece.add_alternatives() = attempt.alternatives(i);
    }
    if (i == 0) piece.set_cached_tokens(attempt.cached_tokens());
    packer->Add(std::move(piece));
  }
}

}  // namespace

std::vector<AttachRequest> SplitReport(StepReport report, int64_t max_bytes) {
  Packer packer(report, max_bytes);
  for (AttemptReport& attempt : *report.mutable_attempts()) {
    if (attempt.terminal().message().size() > kTerminalMessageBytes) {
      attempt.mutable_terminal()->mutable_message()->resize(
          kTerminalMessageBytes);
    }
    if (static_cast<int64_t>(attempt.ByteSizeLong()) + 8 <= packer.room()) {
      packer.Add(std::move(attempt));
      continue;
    }
    AddPromptPages(attempt, &packer);
    AddTokens(attempt, &packer);
    if (attempt.has_terminal()) {
      AttemptReport end;
      *end.mutable_key() = attempt.key();
      *end.mutable_terminal() = attempt.terminal();
      packer.Add(std::move(end));
    }
  }
  return packer.Take();
}

}  // namespace invar
