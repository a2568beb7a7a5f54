#include "common/numerics.h"

#include <gtest/gtest.h>

namespace invar {
namespace {

v1::Numerics Example() {
  v1::Numerics numerics;
  auto* entry = numerics.mutable_plan()->add_entries();
  entry->set_name("attention.split_tokens");
  entry->set_value("256");
  numerics.set_weights_digest("w");
  numerics.set_kernel_build_id("k");
  numerics.set_architecture("x86-64-v3");
  numerics.set_tokenizer_digest("t");
  return numerics;
}

TEST(NumericsTest, RendersEachFieldOnALine) {
  EXPECT_EQ(CanonicalRendering(Example()),
            "invar.numerics=1\nplan.attention.split_tokens=256\n"
            "weights_digest=w\nkernel_build_id=k\narchitecture=x86-64-v3\n"
            "tokenizer_digest=t\n");
}

TEST(NumericsTest, EveryFieldMovesTheFingerprint) {
  const std::string base = Fingerprint(Example());
  auto changed = Example();
  changed.mutable_plan()->mutable_entries(0)->set_value("512");
  EXPECT_NE(Fingerprint(changed), base);
  EXPECT_EQ(FirstDifference(Example(), changed),
            "plan.attention.split_tokens: 256 against 512");
  changed = Example();
  changed.set_weights_digest("x");
  EXPECT_NE(Fingerprint(changed), base);
  changed = Example();
  changed.set_kernel_build_id("x");
  EXPECT_NE(Fingerprint(changed), base);
  changed = Example();
  changed.set_architecture("x");
  EXPECT_NE(Fingerprint(changed), base);
  changed = Example();
  changed.set_tokenizer_digest("x");
  EXPECT_NE(Fingerprint(changed), base);
  EXPECT_EQ(FirstDifference(Example(), changed),
            "tokenizer_digest: t against x");
  changed = Example();
  changed.set_fingerprint("not part of itself");
  EXPECT_EQ(Fingerprint(changed), base);
}

TEST(NumericsTest, AValueCannotImitateALine) {
  auto one = Example();
  one.mutable_plan()->mutable_entries(0)->set_value("256\nplan.a=1");
  auto two = Example();
  auto* entry = two.mutable_plan()->add_entries();
  entry->set_name("a");
  entry->set_value("1");
  EXPECT_NE(Fingerprint(one), Fingerprint(two));
  EXPECT_EQ(FirstDifference(Example(), two),
            "plan.a: stated by one side alone");
}

}  // namespace
}  // namespace invar
