// Parses JSON that comes from outside: a checkpoint's files.
#ifndef INVAR_COMMON_JSON_TEXT_H_
#define INVAR_COMMON_JSON_TEXT_H_

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace invar {

// The value of a JSON text. INVALID_ARGUMENT begins with `file` and says what
// is wrong. Nesting beyond 64 levels is refused, before any memory goes into
// it: no checkpoint needs it, and the library copies and prints a value by
// recursion.
absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text,
                                         absl::string_view file);

}  // namespace invar

#endif  // INVAR_COMMON_JSON_TEXT_H_
