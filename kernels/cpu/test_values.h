// Values for the kernels' tests.
#ifndef INVAR_KERNELS_CPU_TEST_VALUES_H_
#define INVAR_KERNELS_CPU_TEST_VALUES_H_

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/types.h"

namespace invar::cpu {

// `count` values in [-spread, spread), a pure function of the seed.
inline std::vector<float> RandomValues(int64_t count, uint64_t seed,
                                       double spread = 1.0) {
  std::mt19937_64 random(seed);
  std::vector<float> values(count);
  for (float& value : values) {
    value = static_cast<float>(
        (static_cast<double>(random() >> 11) * 0x1p-52 - 1.0) * spread);
  }
  return values;
}

inline Weight Fp32Weight(const std::vector<float>& values, int64_t rows,
                         int64_t columns) {
  return {.dtype = WeightDtype::kFp32,
          .data = reinterpret_cast<const std::byte*>(values.data()),
          .rows = rows,
          .columns = columns};
}

// |actual - expected| <= tolerance * the largest |expected|.
template <typename Reference>
void ExpectClose(const std::vector<float>& actual,
                 const std::vector<Reference>& expected, double tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  double largest = 0.0;
  for (const Reference value : expected) {
    largest = std::max(largest, std::abs(static_cast<double>(value)));
  }
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i], tolerance * largest) << "at " << i;
  }
}

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// An 8-bit float with `mantissa` explicit mantissa bits and this exponent
// bias, by its definition. Codes that are not finite are the caller's affair.
inline double Fp8Value(uint8_t code, int mantissa, int bias) {
  const int exponent = (code & 0x7f) >> mantissa;
  const int fraction = code & ((1 << mantissa) - 1);
  const double magnitude =
      exponent == 0
          ? std::ldexp(fraction, 1 - bias - mantissa)
          : std::ldexp((1 << mantissa) + fraction, exponent - bias - mantissa);
  return code & 0x80 ? -magnitude : magnitude;
}
inline double E4m3Value(uint8_t code) { return Fp8Value(code, 3, 7); }
inline double E5m2Value(uint8_t code) { return Fp8Value(code, 2, 15); }

}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_TEST_VALUES_H_
