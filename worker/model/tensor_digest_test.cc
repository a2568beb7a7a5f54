#include "worker/model/checkpoint/tensor_digest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <string>

#include "common/digest.h"

namespace invar {
namespace {

std::string RandomBytes(size_t size, std::mt19937_64& random) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

// Of every length around the ends of blocks, cut anywhere, beside another: what
// OpenSSL says, with the processor's instructions and without.
TEST(TensorDigest, IsOpensslsInAnyParts) {
  std::mt19937_64 random(1);
  for (const bool instructions : {TensorDigest::HasInstructions(), false}) {
    for (int round = 0; round < 3000; ++round) {
      std::array<std::string, 2> texts;
      for (std::string& text : texts) {
        text = RandomBytes(random() % (round % 10 == 0 ? 5000 : 200), random);
      }
      TensorDigest a(instructions), b(instructions);
      absl::string_view rest_a = texts[0], rest_b = texts[1];
      while (!rest_a.empty() || !rest_b.empty()) {
        const auto part = [&](absl::string_view& rest) {
          const size_t size = std::min<size_t>(random() % 300, rest.size());
          const absl::string_view begin = rest.substr(0, size);
          rest.remove_prefix(size);
          return begin;
        };
        switch (random() % 4) {
          case 0:
            a.Update(part(rest_a));
            break;
          case 1:
            b.Update(part(rest_b));
            break;
          default:
            TensorDigest::UpdateBoth(a, part(rest_a), b, part(rest_b));
        }
      }
      ASSERT_EQ(a.HexDigest(), Sha256Hex(texts[0])) << texts[0].size();
      ASSERT_EQ(b.HexDigest(), Sha256Hex(texts[1])) << texts[1].size();
    }
  }
}

// FIPS 180-4's own example, so that the two do not share a mistake.
TEST(TensorDigest, IsTheStandards) {
  TensorDigest digest;
  digest.Update("abc");
  EXPECT_EQ(digest.HexDigest(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(TensorDigest().HexDigest(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

}  // namespace
}  // namespace invar
