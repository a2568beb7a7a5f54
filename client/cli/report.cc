#include <google/rpc/error_details.pb.h>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "client/cli/command.h"
#include "common/status.h"

namespace invar {
namespace {

// One line stays one line, whatever the server's message holds.
std::string OneLine(absl::string_view text) {
  return absl::StrReplaceAll(text, {{"\r", ""}, {"\n", " "}});
}

}  // namespace

int ExitCodeOf(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::OK:
      return kExitDone;
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::OUT_OF_RANGE:
    case grpc::StatusCode::NOT_FOUND:
    case grpc::StatusCode::ALREADY_EXISTS:
    case grpc::StatusCode::FAILED_PRECONDITION:
    case grpc::StatusCode::UNIMPLEMENTED:
      return kExitUsage;
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return kExitNoServer;
    default:
      return kExitNo;
  }
}

std::string ErrorLine(const grpc::Status& status) {
  std::vector<std::string> notes;
  const std::string fields = ErrorFields(status);
  if (!fields.empty()) notes.push_back(absl::StrCat("field ", fields));
  const std::string reason = ErrorReason(status);
  if (!reason.empty()) notes.push_back(absl::StrCat("reason ", reason));
  const absl::Duration delay = ErrorRetryAfter(status);
  if (delay > absl::ZeroDuration()) {
    notes.push_back(absl::StrCat(
        "try again in ",
        absl::FormatDuration(absl::Ceil(delay, absl::Milliseconds(100)))));
  }
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  std::string message = OneLine(status.error_message());
  // What gRPC itself answers to a call that it does not serve.
  if (code == absl::StatusCode::kUnimplemented && message.empty()) {
    message = "the server has no such call; is this another service's port?";
  }
  std::string line =
      absl::StrCat(absl::StatusCodeToString(code), ": ", message);
  if (!notes.empty()) {
    absl::StrAppend(&line, " (", absl::StrJoin(notes, "; "), ")");
  }
  return line;
}

int ReportUsage(Terminal& terminal, absl::string_view problem) {
  terminal.err << "invar: " << OneLine(problem) << "\n";
  return kExitUsage;
}

int ReportFailure(Terminal& terminal, const absl::Status& status) {
  terminal.err << "invar: " << OneLine(status.message());
  if (absl::IsUnavailable(status)) {
    terminal.err << "; start one with ./deploy/quickstart or invar-scheduler "
                    "--config FILE, or name another with --address HOST:PORT";
  }
  terminal.err << "\n";
  return absl::IsUnavailable(status) ? kExitNoServer : kExitUsage;
}

int ReportFailure(Terminal& terminal, absl::string_view what,
                  const grpc::Status& status) {
  terminal.err << "invar: " << what << (what.empty() ? "" : ": ")
               << ErrorLine(status) << "\n";
  return ExitCodeOf(status);
}

}  // namespace invar
