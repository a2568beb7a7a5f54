#include "common/status.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/status.pb.h"

namespace invar {
namespace {

// Under which an absl status keeps its reason.
constexpr char kReasonPayload[] = "invar/reason";

// The first detail of type Detail, if the status carries one.
template <typename Detail>
Detail FindDetail(const grpc::Status& status) {
  google::rpc::Status full;
  Detail detail;
  if (!full.ParseFromString(status.error_details())) return detail;
  for (const auto& any : full.details()) {
    if (any.UnpackTo(&detail)) return detail;
  }
  return Detail();
}

}  // namespace

Error::Error(absl::StatusCode code, absl::string_view reason,
             absl::string_view message)
    : code_(code), message_(message) {
  info_.set_reason(std::string(reason));
  info_.set_domain(kErrorDomain);
}

Error& Error::Field(absl::string_view path, absl::string_view description) {
  auto* violation = bad_request_.add_field_violations();
  violation->set_field(std::string(path));
  violation->set_description(std::string(description));
  return *this;
}

Error& Error::RetryAfter(absl::Duration delay) {
  retry_.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(delay));
  retry_.mutable_retry_delay()->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(delay % absl::Seconds(1))));
  return *this;
}

Error& Error::Metadata(absl::string_view key, absl::string_view value) {
  (*info_.mutable_metadata())[std::string(key)] = std::string(value);
  return *this;
}

grpc::Status Error::ToStatus() const {
  google::rpc::Status full;
  full.set_code(static_cast<int>(code_));
  full.set_message(message_);
  full.add_details()->PackFrom(info_);
  if (bad_request_.field_violations_size() > 0) {
    full.add_details()->PackFrom(bad_request_);
  }
  if (retry_.has_retry_delay()) full.add_details()->PackFrom(retry_);
  // absl's and gRPC's codes are the same numbers by design.
  return grpc::Status(static_cast<grpc::StatusCode>(code_), message_,
                      full.SerializeAsString());
}

Error BadField(absl::string_view path, absl::string_view description) {
  return Error(absl::StatusCode::kInvalidArgument, "BAD_FIELD",
               absl::StrCat(path, " ", description))
      .Field(path, description);
}

grpc::Status ToGrpcStatus(const absl::Status& status,
                          absl::string_view reason) {
  if (status.ok()) return grpc::Status::OK;
  return Error(status.code(), reason, status.message());
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
}

absl::Status WithReason(absl::Status status, absl::string_view reason) {
  status.SetPayload(kReasonPayload, absl::Cord(reason));
  return status;
}

std::string ReasonOf(const absl::Status& status) {
  const auto reason = status.GetPayload(kReasonPayload);
  return reason.has_value() ? std::string(*reason) : "";
}

std::string ErrorReason(const grpc::Status& status) {
  return FindDetail<google::rpc::ErrorInfo>(status).reason();
}

std::string ErrorFields(const grpc::Status& status) {
  std::string fields;
  const auto bad_request = FindDetail<google::rpc::BadRequest>(status);
  for (const auto& violation : bad_request.field_violations()) {
    absl::StrAppend(&fields, fields.empty() ? "" : ",", violation.field());
  }
  return fields;
}

absl::Duration ErrorRetryAfter(const grpc::Status& status) {
  const auto retry = FindDetail<google::rpc::RetryInfo>(status);
  return absl::Seconds(retry.retry_delay().seconds()) +
         absl::Nanoseconds(retry.retry_delay().nanos());
}

}  // namespace invar
