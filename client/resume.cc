#include "client/resume.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace invar {
namespace {

template <typename Repeated>
void DropFront(size_t count, Repeated* values) {
  values->erase(values->begin(),
                values->begin() + std::min<size_t>(count, values->size()));
}

}  // namespace

ResumableStream::ResumableStream(v1::GenerateRequest request)
    : request_(std::move(request)) {}

ResumableStream::Progress& ResumableStream::At(int32_t index) {
  if (answers_.size() <= static_cast<size_t>(index)) {
    answers_.resize(index + 1);
  }
  return answers_[index];
}

v1::GenerateRequest ResumableStream::NextRequest() {
  v1::GenerateRequest next = request_;
  if (!has_news_) return next;
  resumed_ = true;
  next.mutable_resume()->set_expected_fingerprint(fingerprint_);
  for (Progress& progress : answers_) {
    const bool from_here = one_answer() && !progress.token_ids.empty();
    progress.tokens_again = from_here ? 0 : progress.token_ids.size();
    progress.text_again = from_here ? progress.tail_bytes : progress.text_bytes;
    if (!from_here) continue;
    next.mutable_resume()->mutable_token_ids()->Add(progress.token_ids.begin(),
                                                    progress.token_ids.end());
    // The prompt is scored before the first token is written.
    next.mutable_output()->set_prompt_logprobs(false);
  }
  return next;
}

void ResumableStream::Begin(const std::string& request_id,
                            const std::string& fingerprint) {
  if (!request_id.empty()) request_.set_request_id(request_id);
  if (!fingerprint.empty()) fingerprint_ = fingerprint;
}

absl::Status ResumableStream::CutDelta(Progress* progress,
                                       v1::TokenDelta* delta) const {
  const size_t again =
      std::min<size_t>(progress->tokens_again, delta->token_ids().size());
  const auto known = progress->token_ids.end() - progress->tokens_again;
  if (!std::equal(known, known + again, delta->token_ids().begin())) {
    return absl::DataLossError(
        "the answer was written again, and differs from what had come");
  }
  progress->tokens_again -= again;
  DropFront(again, delta->mutable_token_ids());
  DropFront(again, delta->mutable_logprobs());
  DropFront(again, delta->mutable_top_logprobs());
  delta->set_position(delta->position() + static_cast<int32_t>(again));
  const auto text =
      std::min<int64_t>(progress->text_again, delta->text().size());
  progress->text_again -= text;
  delta->mutable_text()->erase(0, text);

  if (delta->token_ids().empty()) {
    progress->tail_bytes += delta->text().size();
  } else {
    if (resumed_ && progress->next_position != 0 &&
        delta->position() != progress->next_position) {
      return absl::DataLossError(
          absl::StrCat("the next token has position ", progress->next_position,
                       "; what came has ", delta->position()));
    }
    progress->tail_bytes = 0;
    progress->next_position = delta->position() + delta->token_ids().size();
  }
  progress->text_bytes += delta->text().size();
  progress->token_ids.insert(progress->token_ids.end(),
                             delta->token_ids().begin(),
                             delta->token_ids().end());
  return absl::OkStatus();
}

absl::StatusOr<std::optional<v1::GenerateResponse>> ResumableStream::Take(
    v1::GenerateResponse event) {
  switch (event.event_case()) {
    case v1::GenerateResponse::kPromptLogprobs: {
      v1::PromptLogprobs& page = *event.mutable_prompt_logprobs();
      if (resumed_) {
        const int32_t again = std::clamp(prompt_logprobs_ + 1 - page.position(),
                                         0, page.logprobs().size());
        DropFront(again, page.mutable_logprobs());
        page.set_position(page.position() + again);
        if (page.logprobs().empty()) return std::nullopt;
      }
      prompt_logprobs_ += page.logprobs().size();
      break;
    }
    case v1::GenerateResponse::kDelta: {
      v1::TokenDelta& delta = *event.mutable_delta();
      const bool was_empty = delta.token_ids().empty() && delta.text().empty();
      const absl::Status status = CutDelta(&At(delta.index()), &delta);
      if (!status.ok()) return status;
      if (!was_empty && delta.token_ids().empty() && delta.text().empty()) {
        return std::nullopt;
      }
      break;
    }
    case v1::GenerateResponse::kFinal:
      ended_ = true;
      break;
    case v1::GenerateResponse::EVENT_NOT_SET:
      break;
  }
  has_news_ = true;
  return event;
}

}  // namespace invar
