#include "worker/link/submit_assembler.h"

#include <utility>

namespace invar {

using worker::v1::AttemptKey;
using worker::v1::Submit;
using worker::v1::SubmitPart;

std::optional<SubmitAssembler::Ready> SubmitAssembler::Begin(Submit submit) {
  if (absl::Status status = CheckSubmitCounts(submit, limits_); !status.ok()) {
    return Ready{std::move(submit), std::move(status)};
  }
  if (submit.token_ids_size() == submit.total_tokens()) {
    return Ready{std::move(submit), absl::OkStatus()};
  }
  if (partial_.size() >= max_partial_) {
    return Ready{std::move(submit), absl::ResourceExhaustedError(
                                        "too many submits await their parts")};
  }
  const Key key = KeyOf(submit.key());
  partial_.insert_or_assign(key, std::move(submit));
  return std::nullopt;
}

std::optional<SubmitAssembler::Ready> SubmitAssembler::Append(
    const SubmitPart& part) {
  const auto found = partial_.find(KeyOf(part.key()));
  if (found == partial_.end()) return std::nullopt;
  Submit& submit = found->second;
  const bool fits =
      part.token_ids_size() <= submit.total_tokens() - submit.token_ids_size();
  if (fits) submit.mutable_token_ids()->MergeFrom(part.token_ids());
  if (fits && submit.token_ids_size() < submit.total_tokens()) {
    return std::nullopt;
  }
  Ready ready{std::move(submit),
              fits ? absl::OkStatus()
                   : absl::InvalidArgumentError(
                         "token_ids are more than total_tokens")};
  partial_.erase(found);
  return ready;
}

std::optional<Submit> SubmitAssembler::Cancel(const AttemptKey& key) {
  const auto found = partial_.find(KeyOf(key));
  if (found == partial_.end()) return std::nullopt;
  Submit submit = std::move(found->second);
  partial_.erase(found);
  return submit;
}

}  // namespace invar
