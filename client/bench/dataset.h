// Prompts from a file, one JSON object a line.
#ifndef INVAR_CLIENT_BENCH_DATASET_H_
#define INVAR_CLIENT_BENCH_DATASET_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace invar::bench {

struct DatasetEntry {
  struct Text {
    std::string text;
  };
  // One user message.
  struct Chat {
    std::string text;
  };
  using TokenIds = std::vector<int32_t>;

  std::variant<Text, Chat, TokenIds> prompt;
  // Absent: as the options say.
  std::optional<int32_t> output_tokens;
};

// Lines {"text": ...}, {"chat": ...} or {"token_ids": [...]}, each with an
// "output_tokens" if it likes; empty lines are skipped. INVALID_ARGUMENT names
// the line; `name` names the file in it.
absl::StatusOr<std::vector<DatasetEntry>> ParseDataset(
    absl::string_view contents, absl::string_view name);

}  // namespace invar::bench

#endif  // INVAR_CLIENT_BENCH_DATASET_H_
