// Errors that cross gRPC: a code, a sentence for a person, and google.rpc
// details for a program.
#ifndef INVAR_COMMON_STATUS_H_
#define INVAR_COMMON_STATUS_H_

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "google/rpc/error_details.pb.h"

namespace invar {

// ErrorInfo.domain of every error of Invar.
inline constexpr char kErrorDomain[] = "invar";

// An error under construction:
//
//   return Error(absl::StatusCode::kInvalidArgument, "BAD_FIELD", sentence)
//       .Field("sampling.temperature", "must be in [0, 100], is -1");
class Error {
 public:
  // reason: stable, UPPER_SNAKE_CASE, for programs (ErrorInfo.reason).
  Error(absl::StatusCode code, absl::string_view reason,
        absl::string_view message);

  // Names a request field that is wrong (BadRequest).
  Error& Field(absl::string_view path, absl::string_view description);
  // Says when to try again (RetryInfo).
  Error& RetryAfter(absl::Duration delay);
  // A fact a program may want (ErrorInfo.metadata).
  Error& Metadata(absl::string_view key, absl::string_view value);

  // NOLINTNEXTLINE(google-explicit-constructor): so that handlers return it.
  operator grpc::Status() const { return ToStatus(); }
  grpc::Status ToStatus() const;

 private:
  absl::StatusCode code_;
  std::string message_;
  google::rpc::ErrorInfo info_;
  google::rpc::BadRequest bad_request_;
  google::rpc::RetryInfo retry_;
};

// INVALID_ARGUMENT, reason BAD_FIELD: "PATH DESCRIPTION".
Error BadField(absl::string_view path, absl::string_view description);

// An absl status without details as a gRPC one, with the reason given.
grpc::Status ToGrpcStatus(const absl::Status& status, absl::string_view reason);

// The code and message of a gRPC status; the details are dropped.
absl::Status FromGrpcStatus(const grpc::Status& status);

// An absl status that carries an ErrorInfo.reason.
absl::Status WithReason(absl::Status status, absl::string_view reason);
// The reason that WithReason gave; empty without one.
std::string ReasonOf(const absl::Status& status);

// The ErrorInfo.reason of a status; empty without one.
std::string ErrorReason(const grpc::Status& status);

// The field paths of a status's BadRequest, comma separated.
std::string ErrorFields(const grpc::Status& status);

// The RetryInfo of a status; zero without one.
absl::Duration ErrorRetryAfter(const grpc::Status& status);

}  // namespace invar

#endif  // INVAR_COMMON_STATUS_H_
