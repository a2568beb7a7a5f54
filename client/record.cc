#include "client/record.h"

#include <google/protobuf/util/json_util.h>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace invar {
namespace {

// What a record must hold to be asked again; empty: it does.
std::string WhatIsMissing(const v1::GenerationRecord& record) {
  if (record.request().prompt_case() == v1::GenerateRequest::PROMPT_NOT_SET) {
    return "request has no prompt (text, chat or token_ids)";
  }
  if (!record.request().sampling().has_seed()) {
    return "request.sampling.seed is not set";
  }
  if (record.response().answers().empty()) return "response has no answers";
  if (FingerprintOf(record).empty()) {
    return "response.answers[0].completion.receipt.fingerprint is not set";
  }
  return "";
}

}  // namespace

v1::GenerationRecord MakeRecord(const v1::GenerateRequest& request,
                                const v1::GenerateOnceResponse& response) {
  v1::GenerationRecord record;
  *record.mutable_request() = request;
  *record.mutable_response() = response;
  if (response.answers().empty()) return record;
  const v1::Receipt& receipt = response.answers(0).completion().receipt();
  record.mutable_request()->set_request_id(receipt.request_id());
  record.mutable_request()->mutable_sampling()->set_seed(receipt.seed());
  record.mutable_response()->set_request_id(receipt.request_id());
  return record;
}

grpc::Status AddNumerics(Client& client, const CallOptions& options,
                         std::vector<v1::GenerationRecord>& records) {
  v1::GetServerInfoResponse info;
  const grpc::Status status = client.GetServerInfo(options, &info);
  if (!status.ok()) return status;
  for (v1::GenerationRecord& record : records) {
    for (const v1::Pool& pool : info.pools()) {
      if (pool.numerics().fingerprint() == FingerprintOf(record)) {
        *record.mutable_numerics() = pool.numerics();
      }
    }
  }
  return status;
}

const std::string& FingerprintOf(const v1::GenerationRecord& record) {
  static const v1::Answer kNone;
  const v1::Answer& answer = record.response().answers().empty()
                                 ? kNone
                                 : record.response().answers(0);
  return answer.completion().receipt().fingerprint();
}

std::string RecordLine(const v1::GenerationRecord& record) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string line;
  // Fails only for types that a record does not hold (Any).
  (void)google::protobuf::util::MessageToJsonString(record, &line, options);
  return line + "\n";
}

absl::StatusOr<RecordFile> ParseRecords(absl::string_view text,
                                        absl::string_view file_name) {
  RecordFile file;
  int number = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    v1::GenerationRecord record;
    const auto status = google::protobuf::util::JsonStringToMessage(
        google::protobuf::StringPiece(line.data(), line.size()), &record);
    std::string problem(status.message());
    if (status.ok()) problem = WhatIsMissing(record);
    if (!problem.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          file_name, ":", number, ": not a record of an answer: ", problem));
    }
    file.records.push_back(std::move(record));
    file.lines.push_back(number);
  }
  return file;
}

}  // namespace invar
