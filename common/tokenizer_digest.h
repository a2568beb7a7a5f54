// The digest of a checkpoint's tokenizer: part of the fingerprint, computed
// alike by the scheduler, which tokenizes, and by the worker, which does not.
// Of the files alone, not of this code nor of PCRE2: an answer's bits follow
// from its token ids, which its receipt's prompt digest covers, so that another
// reading of a text shows there.
#ifndef INVAR_COMMON_TOKENIZER_DIGEST_H_
#define INVAR_COMMON_TOKENIZER_DIGEST_H_

#include <string>

#include "absl/status/statusor.h"

namespace invar {

// SHA-256 (hex) over, for tokenizer.json and then tokenizer_config.json in the
// folder: the file's name, a zero byte, its size as 8 little-endian bytes, its
// bytes. NOT_FOUND names a file that cannot be read.
absl::StatusOr<std::string> TokenizerDigest(const std::string& model_path);

}  // namespace invar

#endif  // INVAR_COMMON_TOKENIZER_DIGEST_H_
