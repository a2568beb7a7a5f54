// Turns a submit into a sequence, or says what is wrong with it.
#ifndef INVAR_WORKER_ENGINE_SUBMIT_CHECK_H_
#define INVAR_WORKER_ENGINE_SUBMIT_CHECK_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "invar/worker/v1/link.pb.h"
#include "worker/engine/sequence.h"

namespace invar {

struct SubmitLimits {
  int64_t context_tokens = 0;
  int64_t vocab_size = 0;
  int64_t top_logprobs = 0;
};

// Checks what stands in a submit before its parts have come: the counts. A
// submit that passes never grows beyond context_tokens.
absl::Status CheckSubmitCounts(const worker::v1::Submit& submit,
                               const SubmitLimits& limits);

// The sequence of a whole submit. INVALID_ARGUMENT names the field; nothing in
// a submit may stop the worker.
absl::StatusOr<std::unique_ptr<Sequence>> MakeSequence(
    SessionId session, const worker::v1::Submit& submit, absl::Time received,
    const SubmitLimits& limits);

}  // namespace invar

#endif  // INVAR_WORKER_ENGINE_SUBMIT_CHECK_H_
