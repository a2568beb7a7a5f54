#include "client/retry.h"

#include <algorithm>

#include "common/status.h"

namespace invar {
namespace {

using grpc::StatusCode;

// Passes without the caller's doing.
bool MayPass(const grpc::Status& status) {
  switch (status.error_code()) {
    case StatusCode::UNAVAILABLE:
    case StatusCode::RESOURCE_EXHAUSTED:
    // The server has not seen yet that the stream before is lost.
    case StatusCode::ALREADY_EXISTS:
      return true;
    default:
      return false;
  }
}

}  // namespace

bool IsBroken(const grpc::Status& status) {
  if (!ErrorReason(status).empty()) return false;
  switch (status.error_code()) {
    case StatusCode::UNAVAILABLE:
    case StatusCode::CANCELLED:  // By the server, as it stops.
    case StatusCode::UNKNOWN:    // "Stream removed".
    case StatusCode::INTERNAL:   // RST_STREAM.
      return true;
    default:
      return false;
  }
}

void RetryPolicy::OnNews() {
  taken_on_ = true;
  failures_ = 0;
}

std::optional<absl::Duration> RetryPolicy::AfterFailure(
    const grpc::Status& status, absl::Time now) {
  const bool broken = IsBroken(status);
  if (++failures_ == 1) first_failure_ = now;
  if (!broken && !taken_on_) {
    // Another server may have what this one lacks.
    if (status.error_code() == StatusCode::UNAVAILABLE &&
        failures_ < options_.servers) {
      return absl::ZeroDuration();
    }
    return std::nullopt;
  }
  taken_on_ = true;
  if (!broken && !MayPass(status)) return std::nullopt;
  if (now - first_failure_ >= options_.patience || now >= options_.deadline) {
    return std::nullopt;
  }
  const int doublings = std::min(failures_ - 1, 16);
  absl::Duration pause =
      std::min(options_.first_pause * (1 << doublings), options_.last_pause);
  pause *= std::uniform_real_distribution<double>(0.5, 1)(random_);
  pause = std::max(pause, ErrorRetryAfter(status));
  return std::min(pause, options_.deadline - now);
}

}  // namespace invar
