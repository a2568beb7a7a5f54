// Joins the parts of long submits.
#ifndef INVAR_WORKER_LINK_SUBMIT_ASSEMBLER_H_
#define INVAR_WORKER_LINK_SUBMIT_ASSEMBLER_H_

#include <cstddef>
#include <map>
#include <optional>
#include <tuple>

#include "absl/status/status.h"
#include "invar/worker/v1/link.pb.h"
#include "worker/engine/submit_check.h"

namespace invar {

// Not thread-safe: of the one thread at a time that reads a stream. Holds at
// most `max_partial` submits of at most limits.context_tokens tokens each.
class SubmitAssembler {
 public:
  SubmitAssembler(const SubmitLimits& limits, size_t max_partial)
      : limits_(limits), max_partial_(max_partial) {}

  // A submit to pass on: whole if `status` is ok, else to be refused.
  // INVALID_ARGUMENT: malformed. RESOURCE_EXHAUSTED: too many at once.
  struct Ready {
    worker::v1::Submit submit;
    absl::Status status;
  };

  // Empty while parts are missing, and for a part whose submit is not here.
  std::optional<Ready> Begin(worker::v1::Submit submit);
  std::optional<Ready> Append(const worker::v1::SubmitPart& part);

  // Takes out a submit whose parts are missing.
  std::optional<worker::v1::Submit> Cancel(const worker::v1::AttemptKey& key);

 private:
  using Key = std::tuple<int64_t, int32_t>;  // request, attempt

  static Key KeyOf(const worker::v1::AttemptKey& key) {
    return {key.request(), key.attempt()};
  }

  const SubmitLimits limits_;
  const size_t max_partial_;
  std::map<Key, worker::v1::Submit> partial_;
};

}  // namespace invar

#endif  // INVAR_WORKER_LINK_SUBMIT_ASSEMBLER_H_
