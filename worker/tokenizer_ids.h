// The ids that the checkpoint's tokenizer knows.
#ifndef INVAR_WORKER_TOKENIZER_IDS_H_
#define INVAR_WORKER_TOKENIZER_IDS_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace invar {

// The highest id in tokenizer.json, plus one. A model's vocabulary may be
// padded beyond it; ids there have no text and are never chosen. The worker
// reads nothing else of the tokenizer. NOT_FOUND or INVALID_ARGUMENT, naming
// the file.
absl::StatusOr<int64_t> TokenizerIds(const std::string& model_path);

}  // namespace invar

#endif  // INVAR_WORKER_TOKENIZER_IDS_H_
