#ifndef INVAR_WORKER_MODEL_CHECKPOINT_TEXT_FILE_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_TEXT_FILE_H_

#include <string>

#include "absl/status/statusor.h"

namespace invar {

// A whole file of at most 64 MiB. NOT_FOUND or INVALID_ARGUMENT.
absl::StatusOr<std::string> ReadTextFile(const std::string& path);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_TEXT_FILE_H_
