// The tokenizer's side of reference_test.py: reads texts and ids from standard
// input, writes what they become to standard output.
//
//   reference_peer TOKENIZER_JSON
//
// A request: one byte (0 encode, 1 encode with special tokens, 2 decode, 3
// decode and skip special tokens), the payload's size in bytes (uint32), the
// payload: UTF-8, or ids (int32). The answer: its size in bytes (int32; -1 for
// a refusal), then ids, or UTF-8. All little endian.
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include "scheduler/tokenizer/stream_decoder.h"
#include "scheduler/tokenizer/tokenizer.h"

namespace invar {
namespace {

void Answer(const void* bytes, size_t size) {
  const int32_t prefix = static_cast<int32_t>(size);
  std::cout.write(reinterpret_cast<const char*>(&prefix), sizeof prefix);
  std::cout.write(static_cast<const char*>(bytes),
                  static_cast<std::streamsize>(size));
}

void Refuse() {
  const int32_t prefix = -1;
  std::cout.write(reinterpret_cast<const char*>(&prefix), sizeof prefix);
}

// Streamed and whole, which must agree.
void Decode(const Tokenizer& tokenizer, const std::string& payload,
            bool skip_special) {
  std::vector<int32_t> ids(payload.size() / sizeof(int32_t));
  std::memcpy(ids.data(), payload.data(), ids.size() * sizeof(int32_t));
  const auto text = tokenizer.Decode(ids, skip_special);
  StreamDecoder stream(tokenizer, skip_special);
  std::string streamed;
  for (const int32_t id : ids) streamed += stream.Append(id);
  streamed += stream.Finish();
  if (!text.ok() || *text != streamed) return Refuse();
  Answer(text->data(), text->size());
}

int Serve(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string json((std::istreambuf_iterator<char>(file)), {});
  const auto tokenizer = Tokenizer::Parse(json, "{}", path);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << "\n";
    return 1;
  }
  char kind = 0;
  while (std::cin.get(kind)) {
    uint32_t size = 0;
    std::cin.read(reinterpret_cast<char*>(&size), sizeof size);
    std::string payload(size, '\0');
    std::cin.read(payload.data(), size);
    if (kind >= 2) {
      Decode(**tokenizer, payload, kind == 3);
      continue;
    }
    const auto ids = (*tokenizer)->Encode(payload, {kind == 1});
    if (!ids.ok()) {
      Refuse();
    } else {
      Answer(ids->data(), ids->size() * sizeof(int32_t));
    }
  }
  return 0;
}

}  // namespace
}  // namespace invar

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: reference_peer TOKENIZER_JSON\n";
    return 2;
  }
  std::ios::sync_with_stdio(false);
  return invar::Serve(argv[1]);
}
