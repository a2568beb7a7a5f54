// Records of answers: made, written to a file, read from one.
#ifndef INVAR_CLIENT_RECORD_H_
#define INVAR_CLIENT_RECORD_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/client.h"
#include "invar/v1/record.pb.h"

namespace invar {

// The record of an answered request, without numerics: the request with the id
// and the seed that the answer says applied.
v1::GenerationRecord MakeRecord(const v1::GenerateRequest& request,
                                const v1::GenerateOnceResponse& response);

// Asks the server for the numerics behind the records' fingerprints. A pool
// that is gone leaves a record without.
grpc::Status AddNumerics(Client& client, const CallOptions& options,
                         std::vector<v1::GenerationRecord>& records);

// The fingerprint of a record's first receipt.
const std::string& FingerprintOf(const v1::GenerationRecord& record);

// A record as a line of JSON, with its line feed. Floats keep their bits, but
// for the sign of a zero, which no log-probability has.
std::string RecordLine(const v1::GenerationRecord& record);

// Reads lines as RecordLine writes them; empty ones are skipped. Record i stood
// in line lines[i], counted from 1.
struct RecordFile {
  std::vector<v1::GenerationRecord> records;
  std::vector<int> lines;
};
// INVALID_ARGUMENT names file, line and field: no JSON, a field that this
// version does not know, or a record that cannot be asked again.
absl::StatusOr<RecordFile> ParseRecords(absl::string_view text,
                                        absl::string_view file_name);

}  // namespace invar

#endif  // INVAR_CLIENT_RECORD_H_
