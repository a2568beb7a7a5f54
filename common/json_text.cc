#include "common/json_text.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace invar {
namespace {

constexpr int kMaxNesting = 64;
constexpr size_t kMaxProblemBytes = 512;

// The deepest nesting of brackets outside strings.
int NestingDepth(absl::string_view text) {
  int depth = 0;
  int deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      deepest = std::max(deepest, ++depth);
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return deepest;
}

}  // namespace

absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text,
                                         absl::string_view file) {
  if (NestingDepth(text) > kMaxNesting) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": nested more than ", kMaxNesting, " levels deep"));
  }
  try {
    return nlohmann::json::parse(text.begin(), text.end());
  } catch (const nlohmann::json::exception& error) {
    absl::string_view problem = error.what();
    // It quotes what it read last: perhaps a string of megabytes.
    if (problem.size() > kMaxProblemBytes) {
      problem = problem.substr(0, problem.find("; last read"));
    }
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": not valid JSON: ", problem));
  }
}

}  // namespace invar
