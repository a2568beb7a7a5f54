#include "scheduler/tokenizer/byte_alphabet.h"

#include <array>
#include <optional>

#include "scheduler/tokenizer/utf8.h"

namespace invar {
namespace {

constexpr uint32_t kMovedFrom = 0x100;  // the first code point for other bytes
constexpr uint32_t kMoved = 68;

constexpr bool StandsForItself(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
         byte >= 0xAE;
}

constexpr std::array<uint8_t, kMoved> MovedBytes() {
  std::array<uint8_t, kMoved> moved = {};
  size_t count = 0;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    if (!StandsForItself(byte)) moved[count++] = static_cast<uint8_t>(byte);
  }
  return moved;
}

constexpr std::array<uint8_t, kMoved> kMovedBytes = MovedBytes();

// The byte that the code point writes, if any.
std::optional<uint8_t> ByteOf(uint32_t code_point) {
  if (code_point < 256) {
    if (!StandsForItself(code_point)) return std::nullopt;
    return static_cast<uint8_t>(code_point);
  }
  if (code_point >= kMovedFrom + kMoved) return std::nullopt;
  return kMovedBytes[code_point - kMovedFrom];
}

}  // namespace

std::string ByteSymbol(uint8_t byte) {
  uint32_t code_point = byte;
  if (!StandsForItself(byte)) {
    code_point = kMovedFrom;
    while (kMovedBytes[code_point - kMovedFrom] != byte) ++code_point;
  }
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xC0 | code_point >> 6),
          static_cast<char>(0x80 | (code_point & 0x3F))};
}

std::string BytesOfToken(absl::string_view token, bool* in_alphabet) {
  std::string bytes;
  bytes.reserve(token.size());
  absl::string_view rest = token;
  while (!rest.empty()) {
    const size_t length = CharacterLength(rest);
    const std::optional<uint8_t> byte = ByteOf(CodePoint(rest));
    if (!byte.has_value()) {
      if (in_alphabet != nullptr) *in_alphabet = false;
      return std::string(token);
    }
    bytes.push_back(static_cast<char>(*byte));
    rest.remove_prefix(length);
  }
  if (in_alphabet != nullptr) *in_alphabet = true;
  return bytes;
}

}  // namespace invar
