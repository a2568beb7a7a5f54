#ifndef INVAR_SCHEDULER_TOKENIZER_BYTE_ALPHABET_H_
#define INVAR_SCHEDULER_TOKENIZER_BYTE_ALPHABET_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace invar {

// Byte-level BPE writes each byte as a printable character, so that a
// vocabulary is text: printable Latin-1 bytes stand for themselves, the other
// 68 take U+0100 and up, in order (a space becomes U+0120).

// The character, in UTF-8, that writes `byte`.
std::string ByteSymbol(uint8_t byte);

// The bytes of a vocabulary entry. One with a character outside the alphabet
// (an added token, say) stands for its own UTF-8, as in the reference decoder;
// `in_alphabet`, if given, says which.
std::string BytesOfToken(absl::string_view token, bool* in_alphabet = nullptr);

}  // namespace invar

#endif  // INVAR_SCHEDULER_TOKENIZER_BYTE_ALPHABET_H_
