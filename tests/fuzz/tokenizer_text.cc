// Any bytes, as text to the embedded model's tokenizer: encoded, decoded and
// streamed.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "scheduler/tokenizer/stream_decoder.h"
#include "scheduler/tokenizer/tokenizer.h"
#include "scheduler/tokenizer/utf8.h"
#include "tests/fuzz/check.h"

namespace invar {
namespace {

// The bytes in pieces whose lengths the first byte chooses.
void CheckStream(absl::string_view bytes) {
  Utf8Stream whole;
  std::string text = whole.Append(bytes);
  text += whole.Finish();
  Check(!FindInvalidUtf8(text).has_value(), "lossy decoding is valid");
  if (!FindInvalidUtf8(bytes).has_value()) {
    Check(text == bytes, "lossy decoding keeps valid text");
  }
  Utf8Stream pieces;
  std::string joined;
  uint32_t state = bytes.empty() ? 1 : static_cast<uint8_t>(bytes[0]) + 1;
  for (size_t at = 0; at < bytes.size();) {
    state = state * 1664525 + 1013904223;
    const size_t length =
        std::min<size_t>(1 + (state >> 29), bytes.size() - at);
    const std::string piece = pieces.Append(bytes.substr(at, length));
    Check(!FindInvalidUtf8(piece).has_value(), "no piece is half a character");
    joined += piece;
    at += length;
  }
  Check(joined + pieces.Finish() == text, "the cuts do not show");
}

void CheckIds(const Tokenizer& tokenizer, absl::string_view text) {
  for (const bool parse_special : {false, true}) {
    const auto ids = tokenizer.Encode(text, {parse_special});
    if (FindInvalidUtf8(text).has_value()) {
      Check(ids.status().code() == absl::StatusCode::kInvalidArgument,
            "invalid UTF-8 is refused");
      continue;
    }
    Check(ids.ok(), "valid text has ids");
    Check(tokenizer.Decode(*ids, /*skip_special=*/false).value() == text,
          "decoding gives the text back");
    const bool special = std::any_of(ids->begin(), ids->end(), [&](int32_t id) {
      return tokenizer.IsSpecial(id);
    });
    Check(parse_special || !special, "nobody can write a special token");
  }
}

}  // namespace
}  // namespace invar

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto* const tokenizer =
      invar::Tokenizer::Load("deploy/models/invar-gsm-20m").value().release();
  invar::CheckStream(invar::Text(data, size));
  invar::CheckIds(*tokenizer, invar::Text(data, size));
  return 0;
}
