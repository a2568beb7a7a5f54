#include "common/status.h"

#include <gtest/gtest.h>

namespace invar {
namespace {

TEST(StatusTest, DetailsSurviveTheWire) {
  const grpc::Status status =
      Error(absl::StatusCode::kResourceExhausted, "QUEUE_FULL", "full")
          .RetryAfter(absl::Milliseconds(1250))
          .Metadata("queued", "7");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), "full");
  EXPECT_EQ(ErrorReason(status), "QUEUE_FULL");
  EXPECT_EQ(ErrorRetryAfter(status), absl::Milliseconds(1250));
  EXPECT_EQ(ErrorFields(status), "");
}

TEST(StatusTest, BadFieldNamesTheField) {
  const grpc::Status status =
      BadField("sampling.temperature", "must lie in [0, 100], is -1");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(),
            "sampling.temperature must lie in [0, 100], is -1");
  EXPECT_EQ(ErrorFields(status), "sampling.temperature");
  EXPECT_EQ(ErrorReason(status), "BAD_FIELD");
}

TEST(StatusTest, APlainStatusHasNoDetails) {
  const grpc::Status status(grpc::StatusCode::UNAVAILABLE, "gone");
  EXPECT_EQ(ErrorReason(status), "");
  EXPECT_EQ(ErrorRetryAfter(status), absl::ZeroDuration());
  EXPECT_TRUE(absl::IsUnavailable(FromGrpcStatus(status)));
}

}  // namespace
}  // namespace invar
