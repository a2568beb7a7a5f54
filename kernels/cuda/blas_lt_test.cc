// cuBLASLt as mode FAST reaches it: against float64, beside poison.
#include "kernels/cuda/blas_lt.h"

#include "kernels/cuda/gemm_test_values.h"

namespace invar::cuda::testing {
namespace {

class BlasLtTest : public GpuTestWithParam<WeightDtype> {};

TEST_P(BlasLtTest, EachAlgorithmIsClose) {
  const WeightDtype dtype = GetParam();
  const auto blas = BlasLt::Open();
  if (!blas.ok()) GTEST_SKIP() << blas.status().message();
  EXPECT_EQ((*blas)->version().substr(0, 3), "13.");
  constexpr int64_t kRows = 576;
  constexpr int64_t kColumns = 1408;
  constexpr int64_t kStride = kRows + 64;  // as where gate and up share a row
  const Codes w = Encode(dtype, SpreadValues(kRows * kColumns, 1));
  const auto w_data = Upload(w.bytes);
  const auto workspace = Poisoned<std::byte>(BlasLt::kWorkspaceBytes);
  for (const int64_t tokens : {1, 7, 33, 130}) {
    const Codes x = Encode(dtype, SpreadValues(tokens * kColumns, 2));
    const auto x_data = Upload(x.bytes);
    std::vector<double> expected;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t r = 0; r < kRows; ++r) {
        double sum = 0.0;
        for (int64_t k = 0; k < kColumns; ++k) {
          sum += w.values[r * kColumns + k] * x.values[t * kColumns + k];
        }
        expected.push_back(0.25 * sum);
      }
    }
    const BlasProduct product = {.dtype = dtype,
                                 .rows = kRows,
                                 .columns = kColumns,
                                 .tokens = tokens,
                                 .out_stride = kStride};
    const std::vector<BlasAlgorithm> algorithms =
        (*blas)->Algorithms(product, 6);
    ASSERT_FALSE(algorithms.empty()) << tokens << " tokens";
    for (const BlasAlgorithm& algorithm : algorithms) {
      const auto out = Poisoned<float>(tokens * kStride);
      ASSERT_TRUE((*blas)->Run(product, algorithm, 0.25f, w_data.data(),
                               x_data.data(), out.data(), workspace.data(),
                               stream().get()));
      stream().Synchronize();
      const std::vector<float> all = out.Download();
      std::vector<float> rows;
      for (int64_t t = 0; t < tokens; ++t) {
        const float* row = &all[t * kStride];
        rows.insert(rows.end(), row, row + kRows);
        for (int64_t r = kRows; r < kStride; ++r) {
          ASSERT_TRUE(std::isnan(row[r])) << "written past a row's end";
        }
      }
      // Without promotion FP8 sums keep fewer bits.
      EXPECT_LT(RelativeError(rows, expected), 2 * ProductTolerance(dtype))
          << tokens << " tokens";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, BlasLtTest,
                         ::testing::Values(WeightDtype::kBf16,
                                           WeightDtype::kFp16,
                                           WeightDtype::kFp8E4m3),
                         [](const auto& info) {
                           return info.param == WeightDtype::kBf16   ? "bf16"
                                  : info.param == WeightDtype::kFp16 ? "fp16"
                                                                     : "e4m3";
                         });

}  // namespace
}  // namespace invar::cuda::testing
