// What every other promise rests on: a product keeps its bits over the tiles
// and the orientations that are used. tests/gpu/run asks this first, with the
// suites of single kernels that it names.
//
// Products of T tokens have them on the side with 8 to 256 columns (`wgmma`);
// heads' products have 16 or 64 of them a block as rows (`mma.sync`). That
// those of prompts, `wgmma` with tokens on either side, have the bits of the
// latter is PromptAttentionTest's: what lies between is packed.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/gemm_test_values.h"
#include "kernels/cuda/ops.h"

namespace invar::cuda::testing {
namespace {

enum class Format { kBf16, kFp16, kStatic, kToken, kBlock };
constexpr Format kFormats[] = {Format::kBf16, Format::kFp16, Format::kStatic,
                               Format::kToken, Format::kBlock};

std::string Name(const ::testing::TestParamInfo<Format>& info) {
  static constexpr const char* kNames[] = {"bf16", "fp16", "e4m3_static",
                                           "e4m3_token", "e4m3_block"};
  return kNames[static_cast<int>(info.param)];
}

WeightDtype DtypeOf(Format format) {
  return format == Format::kBf16   ? WeightDtype::kBf16
         : format == Format::kFp16 ? WeightDtype::kFp16
                                   : WeightDtype::kFp8E4m3;
}

// Rows whose parts of K differ in magnitude: sums of FP8 have so few bits that,
// alike, they would add up exactly, in whatever order.
std::vector<float> UnevenRows(int64_t rows, int64_t columns, uint64_t seed) {
  std::vector<float> values = SpreadValues(rows * columns, seed);
  for (size_t i = 0; i < values.size(); ++i) {
    const int part = static_cast<int>(i % columns / 128);
    values[i] = std::ldexp(values[i], 5 * part % 14 - 7);
  }
  return values;
}

// A matrix and the inputs of up to `tokens` tokens, with the scales of a
// format.
class Product {
 public:
  Product(Format format, int64_t rows, int64_t columns, int64_t tokens)
      : columns_(columns),
        tokens_(tokens),
        weights_(Upload(
            Encode(DtypeOf(format), SpreadValues(rows * columns, 1)).bytes)),
        x_(Upload(UnevenRows(tokens, columns, 2))),
        codes_(Poisoned<std::byte>(tokens * columns *
                                   WeightElementBytes(DtypeOf(format)))),
        input_scales_(Poisoned<float>(tokens * ScaleBlocks(columns))) {
    const WeightDtype dtype = DtypeOf(format);
    EXPECT_TRUE(
        MakeGemmWeight(dtype, weights_.data(), rows, columns, &weight_));
    EXPECT_TRUE(MakeGemmInput(dtype, codes_.data(), tokens, columns, &input_));
    sink_ = {.data = codes_.data(), .dtype = dtype};
    if (format == Format::kStatic) sink_.scale = 0.5f;
    if (format == Format::kToken || format == Format::kBlock) {
      sink_.dynamic = format == Format::kToken ? DynamicInputs::kToken
                                               : DynamicInputs::kGroup;
      sink_.scales = input_scales_.data();
      input_.scales = input_scales_.data();
    }
    if (format == Format::kBlock) {
      std::vector<float> scales =
          SpreadValues(ScaleBlocks(rows) * ScaleBlocks(columns), 3, -9, -4);
      for (float& scale : scales) scale = std::abs(scale);
      block_scales_ = Upload(scales);
      weight_.block_scales = block_scales_.data();
    } else {
      weight_.scale = 0.3f;
    }
  }

  const GemmWeight& weight() const { return weight_; }

  // Of the last `tokens` ones, so that the same token has another place.
  std::vector<float> OfLast(int64_t tokens, int64_t leaf,
                            Stream& stream) const {
    const LaunchOptions launch = {.stream = stream.get(), .overlap = true};
    const auto out = Poisoned<float>(tokens * weight_.rows);
    QuantizeInputs(x_.data() + (tokens_ - tokens) * columns_, tokens, columns_,
                   sink_, launch);
    Gemm(weight_, leaf, input_, tokens, GemmOutput::kFp32, out.data(), launch);
    stream.Synchronize();
    return out.Download();
  }

 private:
  int64_t columns_;
  int64_t tokens_;
  DeviceBuffer<std::byte> weights_;
  DeviceBuffer<float> x_;
  DeviceBuffer<std::byte> codes_;
  DeviceBuffer<float> input_scales_, block_scales_;
  GemmWeight weight_;
  GemmInput input_;
  InputSink sink_;
};

class ProductBitsTest : public GpuTestWithParam<Format> {
 protected:
  // The rows of the last tokens are the same at every number of them.
  void ExpectSameRows(int64_t rows, int64_t columns, bool row_parallel,
                      const std::vector<int64_t>& numbers) {
    const int64_t most = numbers.back();
    const Product product(GetParam(), rows, columns, most);
    const int64_t leaf = row_parallel ? RowParallelLeaf(columns)
                                      : ColumnParallelLeaf(product.weight());
    const std::vector<float> all = product.OfLast(most, leaf, stream());
    ASSERT_TRUE(std::all_of(all.begin(), all.end(),
                            [](float v) { return std::isfinite(v); }));
    for (const int64_t tokens : numbers) {
      const std::vector<float> some = product.OfLast(tokens, leaf, stream());
      EXPECT_TRUE(
          SameBits(some.data(), &all[(most - tokens) * rows], tokens * rows))
          << rows << " x " << columns << ", " << tokens << " of " << most
          << " tokens";
    }
  }
};

// As q_proj: FP8 uncut has chains of few and of many tokens and, between, the
// widest tile of leaves; the others have leaves, then pairs of blocks.
TEST_P(ProductBitsTest, RowsOfWideWeightsDoNotDependOnTheTokensBeside) {
  ExpectSameRows(3072, 512, /*row_parallel=*/false,
                 {1, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256, 400, 511, 512,
                  513, 1024});
}

// As o_proj: eight leaves, shared by one to eight blocks.
TEST_P(ProductBitsTest, NorDoThoseOfLeaves) {
  ExpectSameRows(
      320, 2048, /*row_parallel=*/true,
      {1, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 511, 512, 513, 1024});
}

// As the LM head, which has tiles of its own from 65 tokens on.
TEST_P(ProductBitsTest, NorDoThoseOfTheLmHead) {
  ExpectSameRows(16384, 128, /*row_parallel=*/false,
                 {1, 16, 64, 65, 128, 129, 300, 512, 520});
}

// All of the above would be equal if the order of additions moved no bit of
// these values.
TEST_P(ProductBitsTest, AnotherOrderHasOtherBits) {
  const Product product(GetParam(), 320, 2048, 64);
  EXPECT_NE(product.OfLast(64, RowParallelLeaf(2048), stream()),
            product.OfLast(64, 2048, stream()));
}

INSTANTIATE_TEST_SUITE_P(Formats, ProductBitsTest,
                         ::testing::ValuesIn(kFormats), Name);

class OrientationBitsTest : public GpuTestWithParam<WeightDtype> {};

std::string DtypeName(const ::testing::TestParamInfo<WeightDtype>& info) {
  return info.param == WeightDtype::kBf16   ? "bf16"
         : info.param == WeightDtype::kFp16 ? "fp16"
                                            : "e4m3";
}

// Weights as rows and tokens as columns, then the other way round: the same
// sums.
TEST_P(OrientationBitsTest, SwappedOperandsHaveTheSameSums) {
  const WeightDtype dtype = GetParam();
  constexpr int64_t kColumns = 2048;
  constexpr int64_t kRows = 320;
  constexpr int64_t kMostTokens = 200;
  const auto w = Upload(Encode(dtype, SpreadValues(kRows * kColumns, 1)).bytes);
  const auto x =
      Upload(Encode(dtype, UnevenRows(kMostTokens, kColumns, 2)).bytes);
  const auto run = [&](const DeviceBuffer<std::byte>& left, int64_t rows,
                       const DeviceBuffer<std::byte>& right, int64_t columns,
                       int64_t leaf) {
    GemmWeight weight;
    GemmInput input;
    EXPECT_TRUE(MakeGemmWeight(dtype, left.data(), rows, kColumns, &weight));
    EXPECT_TRUE(MakeGemmInput(dtype, right.data(), columns, kColumns, &input));
    const auto out = Poisoned<float>(rows * columns);
    Gemm(weight, leaf, input, columns, GemmOutput::kFp32, out.data(),
         {.stream = stream().get()});
    stream().Synchronize();
    return out.Download();
  };
  for (const int64_t leaf : {RowParallelLeaf(kColumns), kColumns}) {
    for (const int64_t tokens : {int64_t{1}, int64_t{30}, kMostTokens}) {
      const auto straight = run(w, kRows, x, tokens, leaf);
      const auto swapped = run(x, tokens, w, kRows, leaf);
      std::vector<float> back(swapped.size());
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t r = 0; r < kRows; ++r) {
          back[t * kRows + r] = swapped[r * tokens + t];
        }
      }
      EXPECT_TRUE(SameBits(straight.data(), back.data(), back.size()))
          << tokens << " tokens, leaves of " << leaf;
    }
  }
}

// kv_b's products, whose rows are tokens: a token alone, blocks of 16 with few
// and with more warps, and blocks of 64.
TEST_P(OrientationBitsTest, HeadsProductsDoNotDependOnTheTokensBeside) {
  const WeightDtype dtype = GetParam();
  constexpr int64_t kHeads = 3;
  constexpr int64_t kMostTokens = 600;
  constexpr int64_t kOut = kHeads * kValue;
  const auto w =
      Upload(Encode(dtype, SpreadValues(kOut * kLatent, 1, -6, 6)).bytes);
  const auto x =
      Upload(SpreadValues(kMostTokens * kHeads * kLatent, 2, -20, 8));
  const HeadProjection projection = {dtype, w.data(), 0.03f, kHeads};
  // Of the last tokens.
  const auto run = [&](int64_t tokens) {
    const auto out = Poisoned<float>(tokens * kOut);
    AbsorbValue({.stream = stream().get()}, projection, tokens,
                x.data() + (kMostTokens - tokens) * kHeads * kLatent,
                out.data());
    stream().Synchronize();
    return out.Download();
  };
  const std::vector<float> all = run(kMostTokens);
  ASSERT_TRUE(std::all_of(all.begin(), all.end(),
                          [](float v) { return std::isfinite(v); }));
  for (const int64_t tokens : {1, 16, 17, 64, 65, 511, 512, 513}) {
    EXPECT_TRUE(SameBits(run(tokens).data(),
                         &all[(kMostTokens - tokens) * kOut], tokens * kOut))
        << tokens << " tokens";
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, OrientationBitsTest,
                         ::testing::Values(WeightDtype::kBf16,
                                           WeightDtype::kFp16,
                                           WeightDtype::kFp8E4m3),
                         DtypeName);

}  // namespace
}  // namespace invar::cuda::testing
