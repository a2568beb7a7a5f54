#include "kernels/cpu/math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/cpu/exp.h"

namespace invar::cpu {
namespace {

// libm is good enough to check against; it is not good enough to be used.
constexpr double kTolerance = 4e-16;

TEST(MathTest, ExpLogAndPowAreWithinUnitsInTheLastPlace) {
  for (double x = -40.0; x < 40.0; x += 0.137) {
    EXPECT_NEAR(Exp(x) / std::exp(x), 1.0, kTolerance * (4 + std::abs(x))) << x;
    EXPECT_NEAR(Log(std::exp(x)), x, kTolerance * (4 + std::abs(x))) << x;
    EXPECT_NEAR(Pow(10000.0, x / 20) / std::pow(10000.0, x / 20), 1.0,
                kTolerance * 40)
        << x;
  }
  EXPECT_EQ(Exp(0.0), 1.0);
  EXPECT_EQ(Log(1.0), 0.0);
}

TEST(MathTest, SinCosHoldOverEveryPositionOfALongContext) {
  for (double x = 0.0; x < 163840.0; x = x * 1.01 + 0.01) {
    double sine;
    double cosine;
    SinCos(x, &sine, &cosine);
    EXPECT_NEAR(sine, std::sin(x), 1e-15) << x;
    EXPECT_NEAR(cosine, std::cos(x), 1e-15) << x;
    SinCos(-x, &sine, &cosine);
    EXPECT_NEAR(sine, -std::sin(x), 1e-15) << x;
  }
}

TEST(MathTest, FloatExpIsWithinTwoUnitsAndSaturates) {
  for (float x = -86.9f; x < 88.0f; x += 0.01f) {
    const double expected = std::exp(static_cast<double>(x));
    EXPECT_NEAR(Exp(x) / expected, 1.0, 2 * 0x1p-23) << x;
  }
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Exp(0.0f), 1.0f);
  EXPECT_EQ(Exp(-87.5f), 0.0f);
  EXPECT_EQ(Exp(-kInfinity), 0.0f);
  EXPECT_EQ(Exp(89.0f), kInfinity);
  EXPECT_EQ(Exp(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(Exp(std::nanf(""))));
}

TEST(MathTest, LanesFoldAsTheDocumentedTree) {
  float v[16];
  for (int i = 0; i < 16; ++i) v[i] = std::ldexp(1.0f + 0.1f * i, i % 7 * 4);
  float tree[16];
  for (int i = 0; i < 16; ++i) tree[i] = v[i];
  for (int half = 8; half >= 1; half /= 2) {
    for (int i = 0; i < half; ++i) tree[i] = tree[i] + tree[i + half];
  }
  EXPECT_EQ(Sum(Load(v)), tree[0]);
}

}  // namespace
}  // namespace invar::cpu
