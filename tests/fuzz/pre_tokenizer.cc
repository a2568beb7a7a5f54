// The pre_tokenizer of a tokenizer.json, a zero byte, and the text to cut:
// deeper into patterns than a whole file would get.
#include "scheduler/tokenizer/pre_tokenizer.h"

#include <string>

#include "absl/strings/match.h"
#include "common/json_text.h"
#include "scheduler/tokenizer/json_node.h"
#include "scheduler/tokenizer/utf8.h"
#include "tests/fuzz/check.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using invar::Check;
  const absl::string_view input = invar::Text(data, size);
  const size_t zero = input.find('\0');
  if (zero == input.npos) return 0;
  const auto json = invar::ParseJson(input.substr(0, zero), "fuzz");
  if (!json.ok()) return 0;
  const auto pre_tokenizer =
      invar::PreTokenizer::Parse(invar::JsonNode(*json, "fuzz"));
  if (!pre_tokenizer.ok()) return 0;
  invar::Utf8Stream lossy;
  std::string text = lossy.Append(input.substr(zero + 1));
  text += lossy.Finish();
  invar::RegexScratch scratch;
  const auto pieces = pre_tokenizer->Run(text, &scratch);
  if (!pieces.ok()) {
    Check(pieces.status().code() == absl::StatusCode::kResourceExhausted,
          "a pattern can only give up");
    return 0;
  }
  std::string joined;
  for (const absl::string_view piece : pieces->views) {
    Check(!piece.empty(), "no piece is empty");
    Check(!invar::FindInvalidUtf8(piece).has_value(),
          "no piece cuts a character");
    joined.append(piece.data(), piece.size());
  }
  if (!absl::StrContains(json->dump(), "Removed") && pieces->owned.empty()) {
    Check(joined == text, "the pieces are the text");
  }
  return 0;
}
