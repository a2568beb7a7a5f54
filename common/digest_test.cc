#include "common/digest.h"

#include <gtest/gtest.h>

#include <vector>

namespace invar {
namespace {

// The vectors of FIPS 180-2, appendix B.
TEST(DigestTest, MatchesPublishedVectors) {
  EXPECT_EQ(Sha256Hex("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(
      Sha256Hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
      "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

TEST(DigestTest, DoesNotDependOnTheSplitOfUpdates) {
  Sha256 hash;
  hash.Update("a");
  hash.Update("");
  hash.Update("bc");
  EXPECT_EQ(hash.HexDigest(), Sha256Hex("abc"));
}

TEST(DigestTest, TokensAreLittleEndianInt32) {
  EXPECT_EQ(TokenDigest(std::vector<int32_t>{1, 258}),
            Sha256Hex(std::string("\1\0\0\0\2\1\0\0", 8)));
}

}  // namespace
}  // namespace invar
