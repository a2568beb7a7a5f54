#ifndef INVAR_SCHEDULER_TOKENIZER_UTF8_H_
#define INVAR_SCHEDULER_TOKENIZER_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace invar {

// What stands at the front of a byte string.
struct Utf8Unit {
  enum Kind {
    kCharacter,   // one whole, well-formed character
    kMalformed,   // bytes that no continuation can make a character
    kIncomplete,  // the beginning of a character, then the end of the input
  };
  Kind kind;
  // Bytes that belong to the unit. A malformed unit is as long as the part
  // that still began a character (at least 1), as Unicode recommends for
  // substitution: each such unit becomes one U+FFFD.
  size_t length;
};

// `bytes` must not be empty.
Utf8Unit ReadUtf8(absl::string_view bytes);

// Offset of the first byte that is not part of a well-formed character.
std::optional<size_t> FindInvalidUtf8(absl::string_view bytes);

// Length in bytes of the well-formed character at the front of `text`.
size_t CharacterLength(absl::string_view text);

// Where the well-formed character that ends just before `end` begins.
size_t CharacterStartBefore(absl::string_view text, size_t end);

// The well-formed character at the front of `text`.
uint32_t CodePoint(absl::string_view text);

// Turns bytes that arrive in pieces into text. Whatever the cuts, the pieces
// of text joined equal the lossy decoding of the bytes joined.
class Utf8Stream {
 public:
  // The text that is now certain; never half a character.
  std::string Append(absl::string_view bytes);
  // What is left: nothing, or one U+FFFD for a character cut short. The
  // stream can then be used afresh.
  std::string Finish();

 private:
  std::string pending_;  // the beginning of one character, at most 3 bytes
};

}  // namespace invar

#endif  // INVAR_SCHEDULER_TOKENIZER_UTF8_H_
