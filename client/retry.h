// When a call that failed is made again, and on which server.
#ifndef INVAR_CLIENT_RETRY_H_
#define INVAR_CLIENT_RETRY_H_

#include <grpcpp/support/status.h>

#include <optional>
#include <random>

#include "absl/time/time.h"

namespace invar {

// Whether a call broke, rather than was answered: an answer of Invar has a
// reason (ErrorInfo), and most codes come from nobody else.
bool IsBroken(const grpc::Status& status);

// Decides for one call. A call that broke is made again; so is, once it has
// broken or begun, one that is refused for a reason that passes: no worker, a
// full queue, its own name still in flight. A call that was never taken on
// is refused to the caller, who may be patient or not, when every server has
// refused it. Not thread-safe.
class RetryPolicy {
 public:
  struct Options {
    int servers = 1;
    // How long a call may go on failing without anything new.
    absl::Duration patience = absl::Minutes(1);
    absl::Time deadline = absl::InfiniteFuture();
    // Doubled each time up to the last; a half of each, at most, is left out
    // at random, so that those who broke together come back apart.
    absl::Duration first_pause = absl::Milliseconds(50);
    absl::Duration last_pause = absl::Seconds(2);
    uint32_t jitter_seed = 0;
  };
  explicit RetryPolicy(const Options& options)
      : options_(options), random_(options.jitter_seed) {}

  // Something new came: the answer is not lost, and the next failure is the
  // first one.
  void OnNews();

  // How long to wait before the next try; nothing: `status` is the result.
  std::optional<absl::Duration> AfterFailure(const grpc::Status& status,
                                             absl::Time now);

 private:
  const Options options_;
  bool taken_on_ = false;
  int failures_ = 0;  // since the last news
  absl::Time first_failure_;
  std::minstd_rand random_;
};

}  // namespace invar

#endif  // INVAR_CLIENT_RETRY_H_
