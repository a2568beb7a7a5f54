// Reads the deployment's config and resolves every default, once, here.
#ifndef INVAR_COMMON_CONFIG_H_
#define INVAR_COMMON_CONFIG_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "invar/v1/config.pb.h"
#include "invar/worker/v1/link.pb.h"

namespace invar {

// Reads a textproto ServerConfig, resolves its defaults and checks its values.
// Errors name the file and, where there is one, line and column: NOT_FOUND,
// INVALID_ARGUMENT (unknown field, value out of range), FAILED_PRECONDITION
// (tensor_parallel over 1).
absl::StatusOr<v1::ServerConfig> LoadServerConfig(const std::string& path);

// The same for a text already read; `name` stands for the file in errors, and
// a relative model.path stays as it is.
absl::StatusOr<v1::ServerConfig> ParseServerConfig(absl::string_view text,
                                                   const std::string& name);

// The part that workers get. The tokenizer's fields are the caller's to set.
worker::v1::WorkerConfig MakeWorkerConfig(const v1::ServerConfig& config);

// SHA-256 (hex) over "field.path=value" lines in field-number order, so that
// it does not depend on protobuf's encoding.
std::string ConfigDigest(const worker::v1::WorkerConfig& config);

// The path of the first field that differs, with both values; empty if none.
std::string DifferingField(const worker::v1::WorkerConfig& ours,
                           const worker::v1::WorkerConfig& theirs);

}  // namespace invar

#endif  // INVAR_COMMON_CONFIG_H_
