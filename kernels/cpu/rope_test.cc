#include <gtest/gtest.h>

#include <array>

#include "kernels/cpu/test_values.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

// V2-Lite's own scaling.
constexpr YarnScaling kYarn = {.factor = 40,
                               .original_max_positions = 4096,
                               .beta_fast = 32,
                               .beta_slow = 1,
                               .mscale = 0.707,
                               .mscale_all_dim = 0.707};

TEST(RopeTest, YarnKeepsFastPairsAndSlowsTheOthersByItsFactor) {
  const RopeTable plain = MakeRopeTable(64, 10000.0, {});
  const RopeTable yarn = MakeRopeTable(64, 10000.0, kYarn);
  ASSERT_EQ(yarn.frequencies.size(), 32u);
  for (int i = 0; i < 32; ++i) {
    const double frequency = std::pow(10000.0, -2.0 * i / 64);
    EXPECT_NEAR(plain.frequencies[i] / frequency, 1.0, 1e-14);
    // The ramp runs from pair 10 to pair 23.
    const double ramp = std::min(std::max((i - 10) / 13.0, 0.0), 1.0);
    EXPECT_NEAR(yarn.frequencies[i] / frequency, 1 - ramp + ramp / 40, 1e-14);
  }
}

TEST(RopeTest, YarnMagnitudes) {
  const RopeTable yarn = MakeRopeTable(64, 10000.0, kYarn);
  EXPECT_EQ(yarn.amplitude, 1.0);
  // The attention scale of V2-Lite: 192^-0.5 * m^2.
  EXPECT_NEAR(yarn.attention_factor / std::sqrt(192.0), 0.1147213868, 1e-10);
  const RopeTable plain = MakeRopeTable(64, 10000.0, {});
  EXPECT_EQ(plain.amplitude, 1.0);
  EXPECT_EQ(plain.attention_factor, 1.0);
}

TEST(RopeTest, RotatesInterleavedPairsOfEveryHead) {
  ThreadPool pool(1);
  constexpr int64_t kHeads = 2;
  constexpr int64_t kDim = 16;
  constexpr int64_t kHeadStride = 20;
  constexpr int64_t kTokenStride = 50;
  const RopeTable table = MakeRopeTable(kDim, 10000.0, {});
  const std::array<int64_t, 2> positions = {3, 1000};
  std::vector<float> cosines(2 * kDim / 2);
  std::vector<float> sines(2 * kDim / 2);
  RopeAngles(table, positions, cosines.data(), sines.data());
  const auto x = RandomValues(2 * kTokenStride, 1);
  auto rotated = x;
  RopeApply(pool, cosines.data(), sines.data(), 2, kHeads, kDim, rotated.data(),
            kTokenStride, kHeadStride);
  std::vector<double> expected(x.begin(), x.end());
  for (int64_t t = 0; t < 2; ++t) {
    for (int64_t h = 0; h < kHeads; ++h) {
      for (int64_t i = 0; i < kDim / 2; ++i) {
        const double angle = static_cast<double>(positions[t]) *
                             std::pow(10000.0, -2.0 * i / kDim);
        const int64_t at = t * kTokenStride + h * kHeadStride + 2 * i;
        expected[at] = x[at] * std::cos(angle) - x[at + 1] * std::sin(angle);
        expected[at + 1] =
            x[at] * std::sin(angle) + x[at + 1] * std::cos(angle);
      }
    }
  }
  ExpectClose(rotated, expected, 1e-6);
}

}  // namespace
}  // namespace invar::cpu
