// What goes into the scheduler's core and what comes out of it.
#ifndef INVAR_SCHEDULER_CORE_TYPES_H_
#define INVAR_SCHEDULER_CORE_TYPES_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "invar/v1/numerics.pb.h"
#include "invar/worker/v1/link.pb.h"

namespace invar::scheduler {

// The scheduler's own number for a request; never used twice.
using RequestNumber = int64_t;
// Answers that a request may ask for (sampling.n).
inline constexpr int32_t kAnswersMax = 16;
// Names one of a request's answers: what workers know as a request.
using SequenceNumber = int64_t;
inline SequenceNumber SequenceOf(RequestNumber request, int32_t index) {
  return request * kAnswersMax + index;
}
inline RequestNumber RequestOf(SequenceNumber sequence) {
  return sequence / kAnswersMax;
}
inline int32_t IndexOf(SequenceNumber sequence) {
  return static_cast<int32_t>(sequence % kAnswersMax);
}
// The scheduler's own number for an attached stream; never used twice.
using LinkNumber = int64_t;

// A request, checked and tokenized.
struct RequestSpec {
  RequestNumber number = 0;
  std::string request_id;   // the client's name for it, unique in flight
  std::string traceparent;  // see common/trace.h; empty: no trace
  std::vector<int32_t> prompt;
  int32_t answers = 1;  // sampling.n
  // Output written before this request, by the same fingerprint. Empty if
  // there is more than one answer.
  std::vector<int32_t> resume_tokens;
  // Empty: whichever pool takes new requests.
  std::string expected_fingerprint;
  // max_tokens is resolved by the core, which knows the context's length.
  v1::EffectiveSampling sampling;
  std::optional<int32_t> max_tokens;
  uint64_t seed = 0;  // of answer 0; see AnswerSeed
  bool logprobs = false;
  int32_t top_logprobs = 0;
  bool prompt_logprobs = false;
  bool allow_divergent_resume = false;
  absl::Time deadline = absl::InfiniteFuture();
};

// Why a worker is not admitted.
struct Refusal {
  std::string error_reason;  // ErrorInfo.reason
  std::string text;          // what is wrong, with what, what to do
};
// ErrorInfo.reason, of a worker and of the requests that none can serve: there
// is no plan for determinism.mode.
inline constexpr char kNumericsNotHonoured[] = "NUMERICS_NOT_HONOURED";

// --- Events ---------------------------------------------------------------

struct RequestArrived {
  std::shared_ptr<const RequestSpec> request;
};
// The client left: nobody wants more of it.
struct RequestAbandoned {
  RequestNumber request;
};
// An answer's stop string matched, which only this side of the link can see:
// it is complete.
struct AnswerStopped {
  RequestNumber request;
  int32_t index;
};
struct WorkerAttached {
  LinkNumber link;
  worker::v1::Hello hello;
};
struct WorkerLoaded {
  LinkNumber link;
  worker::v1::Loaded loaded;
};
struct WorkerLoadFailed {
  LinkNumber link;
  worker::v1::LoadFailed failure;
};
struct WorkerBeat {
  LinkNumber link;
  worker::v1::Heartbeat heartbeat;
};
struct WorkerReported {
  LinkNumber link;
  worker::v1::StepReport report;
};
struct WorkerLeaving {
  LinkNumber link;
};
// The stream ended.
struct WorkerLost {
  LinkNumber link;
  std::string reason;
};
struct WorkerDrained {
  std::string worker_id;
};
struct WorkerResumed {
  std::string worker_id;
};
// Time passed.
struct Tick {};

using Event = std::variant<RequestArrived, RequestAbandoned, AnswerStopped,
                           WorkerAttached, WorkerLoaded, WorkerLoadFailed,
                           WorkerBeat, WorkerReported, WorkerLeaving,
                           WorkerLost, WorkerDrained, WorkerResumed, Tick>;

// --- Actions --------------------------------------------------------------

struct SendConfigure {
  LinkNumber link;
  int64_t epoch;
};
struct SendAdmitted {
  LinkNumber link;
  std::string fingerprint;
};
// The link is closed after it.
struct SendRefused {
  LinkNumber link;
  Refusal refusal;
};
struct SendSubmit {
  LinkNumber link;
  worker::v1::AttemptKey key;
  std::shared_ptr<const RequestSpec> request;
  int32_t index;  // of the answer
  // Output that earlier attempts delivered, resume_tokens included.
  std::vector<int32_t> delivered;
  int32_t max_tokens;
  bool prompt_logprobs;
  std::optional<absl::Duration> time_left;
};
struct SendCancel {
  LinkNumber link;
  worker::v1::AttemptKey key;
};
struct SendDrain {
  LinkNumber link;
};
struct CloseLink {
  LinkNumber link;
  absl::Status status;
};
// A request has a pool: its answers will be written by `fingerprint`. Comes
// again only if that pool was lost before it had written anything.
struct Begin {
  RequestNumber request;
  std::string fingerprint;
  int32_t max_tokens;
};
// New tokens of an answer, or a page of prompt log-probabilities, in order,
// once each.
struct Deliver {
  RequestNumber request;
  int32_t index;
  worker::v1::AttemptReport report;
};
// An answer is complete: STOP or LENGTH.
struct AnswerEnded {
  RequestNumber request;
  int32_t index;
  worker::v1::Terminal::Reason reason;
};
// The request is over; the core has forgotten it.
struct Finish {
  RequestNumber request;
  // OK: every answer is complete. Else what the client is told.
  absl::Status status = {};
  // ErrorInfo.reason of an error.
  std::string error_reason = {};
  // When a retry can succeed; zero: never.
  absl::Duration retry_after = absl::ZeroDuration();
};
// Whether new requests can be served.
struct SetReady {
  bool ready;
};
// A line for the operator's log.
struct Log {
  enum class Level { kInfo, kWarning } level;
  std::string text;
};

using Action = std::variant<SendConfigure, SendAdmitted, SendRefused,
                            SendSubmit, SendCancel, SendDrain, CloseLink, Begin,
                            Deliver, AnswerEnded, Finish, SetReady, Log>;

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_CORE_TYPES_H_
