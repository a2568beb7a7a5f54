#include <gtest/gtest.h>

#include "kernels/cpu/test_values.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

TEST(RmsNormTest, MatchesDoublePrecisionAndKeepsToItsStride) {
  ThreadPool pool(2);
  constexpr int64_t kRows = 5;
  constexpr int64_t kSize = 48;
  constexpr int64_t kStride = 64;
  const auto x = RandomValues(kRows * kStride, 1, 3.0);
  const auto gain = RandomValues(kSize, 2);
  std::vector<float> out(kRows * kSize);
  RmsNorm(pool, x.data(), kStride, gain.data(), 1e-6f, kRows, kSize, out.data(),
          kSize);
  std::vector<double> expected;
  for (int64_t row = 0; row < kRows; ++row) {
    double squares = 0.0;
    for (int64_t k = 0; k < kSize; ++k) {
      squares += std::pow(x[row * kStride + k], 2.0);
    }
    for (int64_t k = 0; k < kSize; ++k) {
      expected.push_back(x[row * kStride + k] /
                         std::sqrt(squares / kSize + 1e-6) * gain[k]);
    }
  }
  ExpectClose(out, expected, 1e-6);
}

}  // namespace
}  // namespace invar::cpu
