#include "common/seed.h"

#include <gtest/gtest.h>

namespace invar {
namespace {

TEST(SeedFromRequestIdTest, IsTheHeadOfTheDigest) {
  // SHA-256("abc") begins ba7816bf8f01cfea.
  EXPECT_EQ(SeedFromRequestId("abc"), 0xeacf018fbf1678baull);
  EXPECT_NE(SeedFromRequestId("a"), SeedFromRequestId("b"));
}

TEST(AnswerSeedTest, IsTheDocumentedLayout) {
  EXPECT_EQ(AnswerSeed(7, 0), 7u);
  // Python: sha256(struct.pack("<Qi", 7, 3)).digest()[:8], little-endian.
  EXPECT_EQ(AnswerSeed(7, 3), 0x970b4a5641f07dbull);
  EXPECT_NE(AnswerSeed(7, 1), AnswerSeed(7, 2));
  EXPECT_NE(AnswerSeed(7, 1), AnswerSeed(8, 1));
}

}  // namespace
}  // namespace invar
