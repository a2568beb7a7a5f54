#include "kernels/cpu/codes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/cpu/test_values.h"

namespace invar::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The code nearest to x, ties to the even code: by search over all codes.
uint8_t Nearest(double x, double (*value)(uint8_t), int codes) {
  // What is past the last code is as far from it as from the one before, in
  // double precision.
  const double magnitude =
      std::min(std::abs(x), value(static_cast<uint8_t>(codes - 1)));
  uint8_t best = 0;
  for (int code = 0; code < codes; ++code) {
    const double distance = std::abs(value(code) - magnitude);
    const double closest = std::abs(value(best) - magnitude);
    if (distance < closest || (distance == closest && code % 2 == 0)) {
      best = static_cast<uint8_t>(code);
    }
  }
  return best | (std::signbit(x) ? 0x80 : 0);
}

template <typename Code>
void CheckFp8(double (*value)(uint8_t), int finite_codes) {
  std::byte codes[16];
  float decoded[16];
  for (int first = 0; first < 256; first += 16) {
    for (int i = 0; i < 16; ++i) codes[i] = static_cast<std::byte>(first + i);
    Store(Code::Decode(codes), decoded);
    for (int i = 0; i < 16; ++i) {
      if (((first + i) & 0x7f) >= finite_codes) continue;
      EXPECT_EQ(decoded[i], value(static_cast<uint8_t>(first + i)));
    }
  }
  // Values of every magnitude, the midpoints between codes, and beyond.
  std::vector<float> inputs = {0.0f,   -0.0f,     1e-9f,      1e30f,
                               -1e30f, kInfinity, -kInfinity, 500.0f,
                               460.0f, 465.0f,    60000.0f};
  for (const float x : RandomValues(2000, 1, 1.0)) {
    inputs.push_back(std::ldexp(x, static_cast<int>(inputs.size() % 40) - 22));
  }
  for (int code = 0; code + 1 < finite_codes; ++code) {
    inputs.push_back(static_cast<float>((value(code) + value(code + 1)) / 2));
    inputs.push_back(-inputs.back());
  }
  inputs.resize((inputs.size() + 15) / 16 * 16);
  for (size_t i = 0; i < inputs.size(); i += 16) {
    Code::Encode(Load(&inputs[i]), codes);
    Store(Code::Round(Load(&inputs[i])), decoded);
    for (size_t k = 0; k < 16; ++k) {
      const uint8_t expected = Nearest(inputs[i + k], value, finite_codes);
      EXPECT_EQ(static_cast<uint8_t>(codes[k]), expected) << inputs[i + k];
      EXPECT_EQ(decoded[k], value(expected)) << inputs[i + k];
    }
  }
}

TEST(CodesTest, E4m3DecodesExactlyAndRoundsToNearestEvenSaturating) {
  CheckFp8<Fp8E4m3Code>(E4m3Value, 0x7f);
}

TEST(CodesTest, E5m2DecodesExactlyAndRoundsToNearestEvenSaturating) {
  CheckFp8<Fp8E5m2Code>(E5m2Value, 0x7c);
}

TEST(CodesTest, Bf16RoundsToNearestEvenAndSaturates) {
  const float inputs[16] = {1.0f,
                            1.00390625f,  // a tie: down to even
                            1.01171875f,  // a tie: up to even
                            1.004f,
                            -1.00390625f,
                            0x1.fffffep+127f,
                            -0x1.fffffep+127f,
                            kInfinity,
                            0.0f,
                            -0.0f,
                            0x1p-130f,
                            3.14159f,
                            2.0f,
                            65504.0f,
                            -2.5f,
                            1e20f};
  const float expected[16] = {1.0f,  1.0f,         1.015625f,     1.0078125f,
                              -1.0f, 0x1.fep+127f, -0x1.fep+127f, 0x1.fep+127f,
                              0.0f,  -0.0f,        0x1p-130f,     3.140625f,
                              2.0f,  65536.0f,     -2.5f,         1e20f};
  std::byte codes[32];
  float decoded[16];
  Bf16Code::Encode(Load(inputs), codes);
  Store(Bf16Code::Decode(codes), decoded);
  for (int i = 0; i < 16; ++i) {
    EXPECT_NEAR(decoded[i], expected[i], std::abs(expected[i]) * 0x1p-8) << i;
    if (i < 11) {
      EXPECT_EQ(decoded[i], expected[i]) << i;
    }
  }
}

TEST(CodesTest, NotANumberStaysOne) {
  for (const uint32_t bits : {0x7fc00000u, 0x7fffffffu, 0xffc00000u}) {
    float nan;
    std::memcpy(&nan, &bits, 4);
    float out[16];
    Store(Fp8E4m3Code::Round(Broadcast(nan)), out);
    EXPECT_TRUE(std::isnan(out[3]));
    Store(Fp8E5m2Code::Round(Broadcast(nan)), out);
    EXPECT_TRUE(std::isnan(out[3]));
    Store(Bf16Code::Round(Broadcast(nan)), out);
    EXPECT_TRUE(std::isnan(out[3]));
  }
}

}  // namespace
}  // namespace invar::cpu
