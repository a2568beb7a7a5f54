// Products: against float64, and every tile against every other bit for bit.
#include "kernels/cuda/gemm_test_values.h"

namespace invar::cuda::testing {
namespace {

struct Shape {
  int64_t rows;
  int64_t columns;
  bool narrow;  // leaves as row-parallel weights have them
};

class GemmTest : public GpuTestWithParam<std::tuple<WeightDtype, Shape>> {};

std::vector<float> Product(const GemmWeight& weight, int64_t leaf,
                           const GemmInput& x, int64_t tokens, GemmTile tile,
                           Stream& stream, bool overlap = false) {
  const auto out = Poisoned<float>(tokens * weight.rows);
  Gemm(weight, leaf, x, tokens, GemmOutput::kFp32, out.data(),
       {.stream = stream.get(), .overlap = overlap}, tile);
  stream.Synchronize();
  return out.Download();
}

TEST_P(GemmTest, IsCloseAndItsRowsKeepTheirBits) {
  const auto [dtype, shape] = GetParam();
  constexpr int64_t kTokens = 150;
  const Codes w = Encode(dtype, SpreadValues(shape.rows * shape.columns, 1));
  const Codes x = Encode(dtype, SpreadValues(kTokens * shape.columns, 2));
  const auto w_data = Upload(w.bytes);
  const auto x_data = Upload(x.bytes);
  GemmWeight weight;
  GemmInput input;
  ASSERT_TRUE(
      MakeGemmWeight(dtype, w_data.data(), shape.rows, shape.columns, &weight));
  ASSERT_TRUE(
      MakeGemmInput(dtype, x_data.data(), kTokens, shape.columns, &input));
  weight.scale = 0.25f;
  const std::vector<float> row_scales = cpu::RandomValues(shape.rows, 3);
  const auto scales = Upload(row_scales);
  weight.row_scales = scales.data();
  const int64_t leaf = shape.narrow ? RowParallelLeaf(shape.columns)
                                    : (shape.columns + 127) / 128 * 128;

  const std::vector<float> all =
      Product(weight, leaf, input, kTokens, {.tokens = 8}, stream());
  std::vector<double> expected;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t r = 0; r < shape.rows; ++r) {
      double sum = 0.0;
      for (int64_t k = 0; k < shape.columns; ++k) {
        sum +=
            w.values[r * shape.columns + k] * x.values[t * shape.columns + k];
      }
      expected.push_back(sum * 0.25 * row_scales[r]);
    }
  }
  EXPECT_LT(RelativeError(all, expected), ProductTolerance(dtype));

  // Tiles, then numbers of tokens; a row is the same bits in all of them.
  for (const GemmTile tile :
       {GemmTile{8, 1, true}, GemmTile{16}, GemmTile{16, 1, true}, GemmTile{32},
        GemmTile{32, 2}, GemmTile{64}, GemmTile{64, 2}, GemmTile{64, 4},
        GemmTile{64, 4, true}, GemmTile{64, 8}, GemmTile{128}, GemmTile{256},
        GemmTile{.tokens = 64, .tall = true},
        GemmTile{.tokens = 128, .tall = true},
        GemmTile{.tokens = 256, .tall = true}}) {
    const auto other = Product(weight, leaf, input, kTokens, tile, stream());
    EXPECT_TRUE(SameBits(all.data(), other.data(), all.size()))
        << "tile " << tile.tokens << " run " << tile.run << " deep "
        << tile.deep << " tall " << tile.tall;
  }
  for (const int64_t tokens : {1, 2, 7, 8, 9, 31, 33, 64, 65, 129}) {
    const auto other =
        Product(weight, leaf, input, tokens, {}, stream(), /*overlap=*/true);
    EXPECT_TRUE(SameBits(all.data(), other.data(), other.size()))
        << tokens << " tokens";
  }
}

// In each of its forms: whatever is rounded, and what cannot be.
TEST_P(GemmTest, OutputsOfBf16AreTheNearest) {
  const auto [dtype, shape] = GetParam();
  constexpr int64_t kTokens = 530;
  const Codes w = Encode(dtype, SpreadValues(shape.rows * shape.columns, 1));
  const Codes x = Encode(dtype, SpreadValues(kTokens * shape.columns, 2));
  const auto w_data = Upload(w.bytes);
  const auto x_data = Upload(x.bytes);
  GemmWeight weight;
  GemmInput input;
  ASSERT_TRUE(
      MakeGemmWeight(dtype, w_data.data(), shape.rows, shape.columns, &weight));
  ASSERT_TRUE(
      MakeGemmInput(dtype, x_data.data(), kTokens, shape.columns, &input));
  std::vector<float> row_scales = cpu::RandomValues(shape.rows, 3);
  row_scales[1] = HUGE_VALF;
  row_scales[18] = std::nanf("");
  row_scales[35] = 0x1.ffp127f;  // past the largest there is no number
  const auto scales = Upload(row_scales);
  weight.row_scales = scales.data();
  const int64_t leaf = shape.narrow ? RowParallelLeaf(shape.columns)
                                    : (shape.columns + 127) / 128 * 128;
  const Codes nearest =
      Encode(WeightDtype::kBf16,
             Product(weight, leaf, input, kTokens, {.tokens = 8}, stream()));
  for (const GemmTile tile :
       {GemmTile{}, GemmTile{8}, GemmTile{16}, GemmTile{32}, GemmTile{32, 2},
        GemmTile{64}, GemmTile{64, 2}, GemmTile{64, 4}, GemmTile{64, 8},
        GemmTile{128}, GemmTile{256}, GemmTile{.tokens = 64, .tall = true},
        GemmTile{.tokens = 256, .tall = true}}) {
    for (const int64_t tokens : {int64_t{1}, int64_t{70}, kTokens}) {
      const auto out = Poisoned<uint16_t>(tokens * shape.rows);
      Gemm(weight, leaf, input, tokens, GemmOutput::kBf16, out.data(),
           {.stream = stream().get()}, tile);
      stream().Synchronize();
      EXPECT_TRUE(
          SameBits(reinterpret_cast<const uint16_t*>(nearest.bytes.data()),
                   out.Download().data(), out.size()))
          << "tile " << tile.tokens << " run " << tile.run << " tall "
          << tile.tall << ", " << tokens << " tokens";
    }
  }
}

// The same token at every place of a tile.
TEST_P(GemmTest, ARowDoesNotDependOnItsPlace) {
  const auto [dtype, shape] = GetParam();
  const Codes w = Encode(dtype, SpreadValues(shape.rows * shape.columns, 4));
  const auto row = SpreadValues(shape.columns, 5);
  const auto w_data = Upload(w.bytes);
  GemmWeight weight;
  ASSERT_TRUE(
      MakeGemmWeight(dtype, w_data.data(), shape.rows, shape.columns, &weight));
  const int64_t leaf = RowParallelLeaf(shape.columns);
  std::vector<float> first;
  for (const int64_t place : {0, 1, 5, 17, 63, 66}) {
    auto values = SpreadValues(67 * shape.columns, 6 + place);
    std::copy(row.begin(), row.end(), &values[place * shape.columns]);
    const auto x_data = Upload(Encode(dtype, values).bytes);
    GemmInput input;
    ASSERT_TRUE(MakeGemmInput(dtype, x_data.data(), 67, shape.columns, &input));
    const auto out = Product(weight, leaf, input, 67, {}, stream());
    const float* mine = &out[place * shape.rows];
    if (first.empty()) first.assign(mine, mine + shape.rows);
    EXPECT_TRUE(SameBits(first.data(), mine, shape.rows)) << "place " << place;
  }
}

// Two products in a launch are what each is alone, also where they have no tile
// in common.
TEST_P(GemmTest, APairIsBothProducts) {
  const auto [dtype, shape] = GetParam();
  constexpr int64_t kTokens = 150;
  const int64_t leaf = shape.narrow ? RowParallelLeaf(shape.columns)
                                    : (shape.columns + 127) / 128 * 128;
  struct Operands {
    DeviceBuffer<std::byte> w, x;
    GemmWeight weight;
    GemmInput input;
  };
  const auto operands = [&](WeightDtype type, int64_t rows, uint64_t seed) {
    Operands o;
    o.w = Upload(Encode(type, SpreadValues(rows * shape.columns, seed)).bytes);
    o.x = Upload(
        Encode(type, SpreadValues(kTokens * shape.columns, seed + 1)).bytes);
    EXPECT_TRUE(
        MakeGemmWeight(type, o.w.data(), rows, shape.columns, &o.weight));
    EXPECT_TRUE(
        MakeGemmInput(type, o.x.data(), kTokens, shape.columns, &o.input));
    o.weight.scale = 0.25f * static_cast<float>(seed);
    return o;
  };
  const Operands first = operands(dtype, shape.rows, 7);
  const WeightDtype other_dtype =
      dtype == WeightDtype::kBf16 ? WeightDtype::kFp8E4m3 : WeightDtype::kBf16;
  for (const Operands& second :
       {operands(dtype, 84, 9), operands(dtype, 1030, 11),
        operands(other_dtype, 84, 13)}) {
    for (const int64_t tokens : {1, 9, 64, 65, 150}) {
      const auto a = Poisoned<float>(tokens * first.weight.rows);
      const auto b = Poisoned<float>(tokens * second.weight.rows);
      GemmPair({&first.weight, leaf, &first.input, a.data()},
               {&second.weight, leaf, &second.input, b.data()}, tokens,
               GemmOutput::kFp32, {.stream = stream().get(), .overlap = true});
      stream().Synchronize();
      EXPECT_TRUE(a.Download() == Product(first.weight, leaf, first.input,
                                          tokens, {.tokens = 8}, stream()));
      EXPECT_TRUE(b.Download() == Product(second.weight, leaf, second.input,
                                          tokens, {.tokens = 8}, stream()))
          << second.weight.rows << " rows, " << tokens << " tokens";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, GemmTest,
    ::testing::Combine(
        ::testing::Values(WeightDtype::kBf16, WeightDtype::kFp16,
                          WeightDtype::kFp8E4m3),
        ::testing::Values(Shape{320, 2048, true}, Shape{576, 2816, true},
                          Shape{129, 352, true}, Shape{64, 1408, false},
                          Shape{77, 16, true}, Shape{200, 1104, false},
                          // the embedded model's
                          Shape{384, 512, true}, Shape{1088, 384, true})));

}  // namespace
}  // namespace invar::cuda::testing
