#include "scheduler/tokenizer/utf8.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace invar {
namespace {

constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

bool IsContinuation(char byte) {
  return (static_cast<uint8_t>(byte) & 0xC0) == 0x80;
}

struct LeadByte {
  size_t length;        // of the whole character; 0: never a first byte
  uint8_t second_low;   // the second byte's range, which excludes overlong
  uint8_t second_high;  // forms, surrogates and values over U+10FFFF
};

LeadByte Classify(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Unit ReadUtf8(absl::string_view bytes) {
  const LeadByte lead = Classify(static_cast<uint8_t>(bytes[0]));
  if (lead.length == 0) return {Utf8Unit::kMalformed, 1};
  for (size_t i = 1; i < lead.length; ++i) {
    if (i == bytes.size()) return {Utf8Unit::kIncomplete, i};
    const uint8_t byte = static_cast<uint8_t>(bytes[i]);
    const bool fits = i == 1
                          ? byte >= lead.second_low && byte <= lead.second_high
                          : IsContinuation(bytes[i]);
    if (!fits) return {Utf8Unit::kMalformed, i};
  }
  return {Utf8Unit::kCharacter, lead.length};
}

std::optional<size_t> FindInvalidUtf8(absl::string_view bytes) {
  size_t at = 0;
  while (at < bytes.size()) {
    const Utf8Unit unit = ReadUtf8(bytes.substr(at));
    if (unit.kind != Utf8Unit::kCharacter) return at;
    at += unit.length;
  }
  return std::nullopt;
}

size_t CharacterLength(absl::string_view text) {
  return Classify(static_cast<uint8_t>(text[0])).length;
}

size_t CharacterStartBefore(absl::string_view text, size_t end) {
  size_t start = end - 1;
  while (start > 0 && IsContinuation(text[start])) --start;
  return start;
}

uint32_t CodePoint(absl::string_view text) {
  const size_t length = CharacterLength(text);
  uint32_t code_point = static_cast<uint8_t>(text[0]);
  if (length > 1) code_point &= 0x7F >> length;
  for (size_t i = 1; i < length; ++i) {
    code_point = code_point << 6 | (static_cast<uint8_t>(text[i]) & 0x3F);
  }
  return code_point;
}

std::string Utf8Stream::Append(absl::string_view bytes) {
  const std::string input = absl::StrCat(pending_, bytes);
  pending_.clear();
  std::string text;
  text.reserve(input.size());
  absl::string_view rest = input;
  while (!rest.empty()) {
    const Utf8Unit unit = ReadUtf8(rest);
    if (unit.kind == Utf8Unit::kIncomplete) {
      pending_ = std::string(rest);
      break;
    }
    absl::StrAppend(&text, unit.kind == Utf8Unit::kCharacter
                               ? rest.substr(0, unit.length)
                               : kReplacement);
    rest.remove_prefix(unit.length);
  }
  return text;
}

std::string Utf8Stream::Finish() {
  return std::exchange(pending_, {}).empty() ? std::string()
                                             : std::string(kReplacement);
}

}  // namespace invar
