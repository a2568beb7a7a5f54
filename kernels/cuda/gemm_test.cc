// Products: against float64, and every tile against every other bit for bit.
#include "kernels/cuda/gemm_test_values.h"

namespace invar::cuda::testing {
namespace {

struct Shape {
  int64_t rows;
  int64_t columns;
  bool narrow;  // leaves as row-parallel weights have them
};

// Rows of inputs. Where sums are promoted, the parts of K differ in magnitude:
// those of FP8 have so few bits that, alike, they would add up exactly, in
// whatever order.
Codes Inputs(WeightDtype dtype, int64_t rows, int64_t columns, uint64_t seed) {
  std::vector<float> values = SpreadValues(rows * columns, seed);
  if (dtype == WeightDtype::kFp8E4m3) {
    for (size_t i = 0; i < values.size(); ++i) {
      const int part = static_cast<int>(i % columns / 128);
      values[i] = std::ldexp(values[i], 5 * part % 14 - 7);
    }
  }
  return Encode(dtype, values);
}

// A product's weights and inputs, here and on the device.
struct Operands {
  Codes w, x;
  DeviceBuffer<std::byte> w_data, x_data;
  GemmWeight weight;
  GemmInput input;

  Operands(WeightDtype dtype, int64_t rows, int64_t columns, int64_t tokens,
           uint64_t seed)
      : w(Encode(dtype, SpreadValues(rows * columns, seed))),
        x(Inputs(dtype, tokens, columns, seed + 1)),
        w_data(Upload(w.bytes)),
        x_data(Upload(x.bytes)) {
    EXPECT_TRUE(MakeGemmWeight(dtype, w_data.data(), rows, columns, &weight));
    EXPECT_TRUE(MakeGemmInput(dtype, x_data.data(), tokens, columns, &input));
  }
};

int64_t LeafOf(const Shape& shape) {
  return shape.narrow ? RowParallelLeaf(shape.columns)
                      : (shape.columns + 127) / 128 * 128;
}

class GemmTest : public GpuTestWithParam<std::tuple<WeightDtype, Shape>> {};
class GemmPairTest : public GpuTestWithParam<WeightDtype> {};

std::vector<float> Product(const GemmWeight& weight, int64_t leaf,
                           const GemmInput& x, int64_t tokens, GemmTile tile,
                           Stream& stream, bool overlap = false) {
  const auto out = Poisoned<float>(tokens * weight.rows);
  Gemm(weight, leaf, x, tokens, GemmOutput::kFp32, out.data(),
       {.stream = stream.get(), .overlap = overlap}, tile);
  stream.Synchronize();
  return out.Download();
}

// A launch of two products is what each is alone.
void ExpectBothProducts(const Operands& first, const Operands& second,
                        int64_t leaf, int64_t tokens, Stream& stream) {
  const auto a = Poisoned<float>(tokens * first.weight.rows);
  const auto b = Poisoned<float>(tokens * second.weight.rows);
  GemmPair({&first.weight, leaf, &first.input, a.data()},
           {&second.weight, leaf, &second.input, b.data()}, tokens,
           GemmOutput::kFp32, {.stream = stream.get(), .overlap = true});
  stream.Synchronize();
  const auto alone = [&](const Operands& o) {
    return Product(o.weight, leaf, o.input, tokens, {.tokens = 8}, stream);
  };
  EXPECT_TRUE(a.Download() == alone(first)) << tokens << " tokens";
  EXPECT_TRUE(b.Download() == alone(second))
      << second.weight.rows << " rows, " << tokens << " tokens";
}

TEST_P(GemmTest, IsCloseAndItsRowsKeepTheirBits) {
  const auto [dtype, shape] = GetParam();
  constexpr int64_t kTokens = 150;
  Operands operands(dtype, shape.rows, shape.columns, kTokens, 1);
  auto& [w, x, w_data, x_data, weight, input] = operands;
  weight.scale = 0.25f;
  const std::vector<float> row_scales = cpu::RandomValues(shape.rows, 3);
  const auto scales = Upload(row_scales);
  weight.row_scales = scales.data();
  const int64_t leaf = LeafOf(shape);

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
  for (const GemmTile tile : {GemmTile{8, 1, true},
                              GemmTile{16},
                              GemmTile{16, 1, true},
                              GemmTile{32},
                              GemmTile{32, 2},
                              GemmTile{64},
                              GemmTile{64, 2},
                              GemmTile{64, 4},
                              GemmTile{64, 4, true},
                              GemmTile{64, 8},
                              GemmTile{128},
                              GemmTile{256},
                              GemmTile{.tokens = 64, .tall = true},
                              GemmTile{.tokens = 128, .tall = true},
                              GemmTile{.tokens = 256, .tall = true},
                              GemmTile{.tokens = 8, .chain = true},
                              GemmTile{.tokens = 32, .chain = true},
                              GemmTile{.tokens = 64, .chain = true},
                              GemmTile{.tokens = 128, .chain = true},
                              GemmTile{.tokens = 192, .chain = true},
                              GemmTile{.tokens = 256, .chain = true}}) {
    const auto other = Product(weight, leaf, input, kTokens, tile, stream());
    EXPECT_TRUE(SameBits(all.data(), other.data(), all.size()))
        << "tile " << tile.tokens << " run " << tile.run << " deep "
        << tile.deep << " tall " << tile.tall << " chain " << tile.chain;
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
  Operands operands(dtype, shape.rows, shape.columns, kTokens, 1);
  auto& [w, x, w_data, x_data, weight, input] = operands;
  std::vector<float> row_scales = cpu::RandomValues(shape.rows, 3);
  row_scales[1] = HUGE_VALF;
  row_scales[18] = std::nanf("");
  row_scales[35] = 0x1.ffp127f;  // past the largest there is no number
  const auto scales = Upload(row_scales);
  weight.row_scales = scales.data();
  const int64_t leaf = LeafOf(shape);
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
  const int64_t leaf = LeafOf(shape);
  const auto operands = [&](WeightDtype type, int64_t rows, uint64_t seed) {
    Operands o(type, rows, shape.columns, kTokens, seed);
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
      ExpectBothProducts(first, second, leaf, tokens, stream());
    }
  }
}

// With more tiles than multiprocessors, a block goes on from tile to tile, also
// of the other product; with scales of rows and of tokens.
TEST_P(GemmPairTest, BlocksGoOnFromTileToTile) {
  const WeightDtype dtype = GetParam();
  constexpr int64_t kColumns = 640;
  constexpr int64_t kTokens = 2500;
  struct Scaled : Operands {
    DeviceBuffer<float> row_scales, token_scales;
    Scaled(WeightDtype dtype, int64_t rows, uint64_t seed)
        : Operands(dtype, rows, kColumns, kTokens, seed),
          row_scales(Upload(cpu::RandomValues(rows, seed + 2))),
          token_scales(Upload(cpu::RandomValues(kTokens, seed + 3))) {
      weight.scale = 0.3f;
      weight.row_scales = row_scales.data();
    }
  };
  Scaled first(dtype, 1552, 20);
  Scaled second(dtype, 336, 30);
  const int64_t leaf = ColumnParallelLeaf(first.weight);
  for (const bool token_scales : {false, true}) {
    if (token_scales) {
      first.input.scales = first.token_scales.data();
      second.input.scales = second.token_scales.data();
    }
    // Whole tiles, parts of tiles, and what takes each kind of tile.
    for (const int64_t tokens : {257, 512, 1024, 2304, 2500}) {
      ExpectBothProducts(first, second, leaf, tokens, stream());
    }
  }
  for (const GemmTile tile :
       {GemmTile{.tokens = 128, .chain = true},
        GemmTile{.tokens = 192, .chain = true},
        GemmTile{.tokens = 256, .chain = true}, GemmTile{256}}) {
    EXPECT_TRUE(Product(first.weight, leaf, first.input, kTokens, tile,
                        stream()) == Product(first.weight, leaf, first.input,
                                             kTokens, {.tokens = 8}, stream()))
        << "tile " << tile.tokens << " chain " << tile.chain;
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, GemmPairTest,
                         ::testing::Values(WeightDtype::kBf16,
                                           WeightDtype::kFp16,
                                           WeightDtype::kFp8E4m3));

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

// Only FP8's narrow weights are uncut: turns of all groups of a block, and
// more.
INSTANTIATE_TEST_SUITE_P(
    Uncut, GemmTest,
    ::testing::Combine(::testing::Values(WeightDtype::kFp8E4m3),
                       ::testing::Values(Shape{320, 2048, false},
                                         Shape{576, 4224, false},
                                         Shape{129, 352, false})));

}  // namespace
}  // namespace invar::cuda::testing
