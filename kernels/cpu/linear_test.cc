#include <gtest/gtest.h>

#include "kernels/cpu/codes.h"
#include "kernels/cpu/dot.h"
#include "kernels/cpu/test_values.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

// One output by the contract's words: 16 lanes, k ascending, fused, tree.
float LaneDot(const float* w, const float* x, int64_t count) {
  float lanes[16] = {};
  for (int64_t k = 0; k < count; ++k) {
    lanes[k % 16] = std::fma(w[k], x[k], lanes[k % 16]);
  }
  for (int half = 8; half >= 1; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] + lanes[i + half];
  }
  return lanes[0];
}

float LeafDot(const float* w, const float* x, int64_t count) {
  const int64_t leaf = RowParallelLeaf(count);
  float place[8];
  bool present[8] = {};
  for (int64_t k = 0, i = 0; k < count; k += leaf, ++i) {
    place[i] = LaneDot(w + k, x + k, std::min(leaf, count - k));
    present[i] = true;
  }
  for (int stride = 1; stride < 8; stride *= 2) {
    for (int i = 0; i < 8; i += 2 * stride) {
      if (present[i + stride]) place[i] = place[i] + place[i + stride];
    }
  }
  return place[0];
}

TEST(LinearTest, GivesTheBitsOfTheWrittenOrderForEveryTokenCount) {
  ThreadPool pool(2);
  constexpr int64_t kRows = 37;
  for (const int64_t columns : {16, 48, 400, 1040}) {
    const auto w = RandomValues(kRows * columns, 1);
    const Weight weight = Fp32Weight(w, kRows, columns);
    for (const int64_t tokens : {1, 2, 3, 4, 5, 6, 7, 13}) {
      const auto x = RandomValues(tokens * columns, 2);
      std::vector<float> plain(tokens * kRows);
      std::vector<float> leaves(tokens * kRows);
      Linear(pool, weight, x.data(), tokens, plain.data());
      LinearRowParallel(pool, weight, x.data(), tokens, leaves.data());
      std::vector<float> expected;
      std::vector<float> expected_leaves;
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t r = 0; r < kRows; ++r) {
          const float* row = &w[r * columns];
          expected.push_back(LaneDot(row, &x[t * columns], columns));
          expected_leaves.push_back(LeafDot(row, &x[t * columns], columns));
        }
      }
      EXPECT_TRUE(SameBits(plain, expected)) << columns << " " << tokens;
      EXPECT_TRUE(SameBits(leaves, expected_leaves))
          << columns << " " << tokens;
    }
  }
}

// Every dtype, few tokens and many, rows and tokens that leave a rest; FP8
// weights also with inputs of each kind.
TEST(LinearTest, AllInstructionSetsGiveTheSameBits) {
  if (BestIsa() == Isa::kAvx2) GTEST_SKIP() << "no AVX-512 here";
  ThreadPool avx2(2, Isa::kAvx2);
  constexpr int64_t kRows = 39;
  struct Kind {
    WeightDtype dtype;
    float input_scale = 0.0f;
    DynamicInputs dynamic = DynamicInputs::kNone;
  };
  for (const Kind& kind :
       {Kind{WeightDtype::kFp8E4m3}, Kind{WeightDtype::kFp8E4m3, 0.004f},
        Kind{WeightDtype::kFp8E4m3, 0.0f, DynamicInputs::kToken},
        Kind{WeightDtype::kFp8E4m3, 0.0f, DynamicInputs::kGroup},
        Kind{WeightDtype::kBf16}, Kind{WeightDtype::kFp16},
        Kind{WeightDtype::kFp32}}) {
    for (const int64_t columns : {16, 400, 2832, 9008}) {
      std::vector<uint8_t> bytes(kRows * columns *
                                 WeightElementBytes(kind.dtype));
      for (size_t i = 0; i < bytes.size(); ++i) {
        // No infinities and no NaNs in any of the formats.
        bytes[i] = static_cast<uint8_t>(i * 37 + i / 251) & 0xbb;
      }
      const Weight weight = {
          .dtype = kind.dtype,
          .data = reinterpret_cast<const std::byte*>(bytes.data()),
          .rows = kRows,
          .columns = columns,
          .scale = 0.03f,
          .input_scale = kind.input_scale,
          .dynamic_inputs = kind.dynamic};
      for (const int64_t tokens : {1, 2, 3, 4, 5, 6, 7, 20}) {
        const auto x = RandomValues(tokens * columns, 2);
        std::vector<float> narrow(tokens * kRows), leaves(tokens * kRows);
        Linear(avx2, weight, x.data(), tokens, narrow.data());
        LinearRowParallel(avx2, weight, x.data(), tokens, leaves.data());
        for (const Isa isa : {Isa::kAvx512, Isa::kAvx512Bf16}) {
          if (isa > BestIsa()) continue;
          ThreadPool pool(2, isa);
          std::vector<float> wide(tokens * kRows);
          Linear(pool, weight, x.data(), tokens, wide.data());
          EXPECT_TRUE(SameBits(narrow, wide)) << columns << " " << tokens;
          LinearRowParallel(pool, weight, x.data(), tokens, wide.data());
          EXPECT_TRUE(SameBits(leaves, wide)) << columns << " " << tokens;
        }
      }
    }
  }
}

TEST(LinearTest, LeavesAreAtMostEightAndWholeBlocksOf128) {
  for (const int64_t columns : {16, 128, 512, 1024, 1040, 2816, 10944}) {
    const int64_t leaf = RowParallelLeaf(columns);
    EXPECT_EQ(leaf % 128, 0);
    EXPECT_LE((columns + leaf - 1) / leaf, kMaxLeaves);
  }
}

TEST(LinearTest, FewClaimsComeOutEven) {
  const Weight few = {.rows = 192, .columns = 384};
  const Weight more = {.rows = 576, .columns = 384};
  const Weight even = {.rows = 768, .columns = 384};
  constexpr int64_t kTokens = 16;
  EXPECT_EQ(DotGrain(few, kTokens), 32);
  EXPECT_EQ(EvenDotGrain(few, kTokens, 4), 48);   // 4 claims instead of 6
  EXPECT_EQ(EvenDotGrain(more, kTokens, 4), 48);  // 12 instead of 18
  EXPECT_EQ(EvenDotGrain(even, kTokens, 4), 32);
  EXPECT_EQ(EvenDotGrain(few, kTokens, 1), 32);
}

TEST(LinearTest, Fp8WeightsWithStaticFp8Inputs) {
  ThreadPool pool(1);
  constexpr int64_t kRows = 9;
  constexpr int64_t kColumns = 64;
  constexpr int64_t kTokens = 3;
  std::vector<uint8_t> codes(kRows * kColumns);
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = static_cast<uint8_t>(i * 37 % 256);
    if ((codes[i] & 0x7f) == 0x7f) codes[i] = 0;
  }
  const Weight weight = {
      .dtype = WeightDtype::kFp8E4m3,
      .data = reinterpret_cast<const std::byte*>(codes.data()),
      .rows = kRows,
      .columns = kColumns,
      .scale = 0.03f,
      .input_scale = 0.01f};
  const auto x = RandomValues(kTokens * kColumns, 3, 6.0);  // some saturate
  std::vector<float> out(kTokens * kRows);
  Linear(pool, weight, x.data(), kTokens, out.data());
  std::vector<double> expected;
  for (int64_t t = 0; t < kTokens; ++t) {
    std::vector<float> grid(kColumns);
    for (int64_t k = 0; k < kColumns; k += 16) {
      Store(Fp8E4m3Code::Round(
                Divide(Load(&x[t * kColumns + k]), Broadcast(0.01f))),
            &grid[k]);
    }
    for (int64_t r = 0; r < kRows; ++r) {
      double sum = 0.0;
      for (int64_t k = 0; k < kColumns; ++k) {
        sum += E4m3Value(codes[r * kColumns + k]) * grid[k];
      }
      expected.push_back(sum * 0.03f * 0.01f);
    }
  }
  ExpectClose(out, expected, 1e-6);
}

// e4m3(x / s) * s by the definition, s = max|x| / 448 over each `run`.
std::vector<double> FakeQuantised(const std::vector<float>& x, int64_t columns,
                                  int64_t run) {
  std::vector<double> out(x.size());
  for (size_t row = 0; row < x.size(); row += columns) {
    for (int64_t begin = 0; begin < columns; begin += run) {
      const int64_t end = std::min(begin + run, columns);
      float largest = 0.0f;
      for (int64_t k = begin; k < end; ++k) {
        largest = std::max(largest, std::abs(x[row + k]));
      }
      const float scale = largest / 448.0f;
      for (int64_t k = begin; k < end; ++k) {
        double best = 0.0;
        const double value = scale > 0 ? x[row + k] / scale : 0.0;
        for (int code = 0; code < 256; ++code) {
          if ((code & 0x7f) == 0x7f) continue;
          const double candidate = E4m3Value(static_cast<uint8_t>(code));
          if (std::abs(candidate - value) < std::abs(best - value)) {
            best = candidate;
          }
        }
        out[row + k] = best * scale;
      }
    }
  }
  return out;
}

// Channel scales with inputs scaled a token, block scales with inputs scaled a
// group: against the definition, and with the same bits for one token as for
// many, in both instruction sets.
TEST(LinearTest, ScalesOfRowsAndBlocksAndDynamicInputs) {
  constexpr int64_t kRows = 200;
  constexpr int64_t kColumns = 400;
  constexpr int64_t kTokens = 9;
  constexpr int64_t kOffset = 96;  // block rows begin inside a block
  std::vector<uint8_t> codes(kRows * kColumns);
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = static_cast<uint8_t>(i * 37 + i / 251) & 0xbb;
  }
  std::vector<float> scales = RandomValues(kRows, 4);
  for (float& scale : scales) scale = 0.02f + 0.01f * scale;
  auto x = RandomValues(kTokens * kColumns, 3, 6.0);
  std::fill_n(x.begin() + 2 * kColumns, kColumns, 0.0f);
  for (const bool blocks : {false, true}) {
    Weight weight = {.dtype = WeightDtype::kFp8E4m3,
                     .data = reinterpret_cast<const std::byte*>(codes.data()),
                     .rows = kRows,
                     .columns = kColumns};
    weight.dynamic_inputs =
        blocks ? DynamicInputs::kGroup : DynamicInputs::kToken;
    if (blocks) {
      weight.block_scales = scales.data();
      weight.block_offset = kOffset;
    } else {
      weight.row_scales = scales.data();
    }
    const auto inputs =
        FakeQuantised(x, kColumns, blocks ? kScaleBlock : kColumns);
    std::vector<double> expected;
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t r = 0; r < kRows; ++r) {
        double sum = 0.0;
        for (int64_t k = 0; k < kColumns; ++k) {
          const double scale =
              blocks ? scales[(kOffset + r) / 128 * 4 + k / 128] : scales[r];
          sum += scale * E4m3Value(codes[r * kColumns + k]) *
                 inputs[t * kColumns + k];
        }
        expected.push_back(sum);
      }
    }
    for (const Isa isa : {Isa::kAvx2, BestIsa()}) {
      ThreadPool pool(2, isa);
      std::vector<float> out(kTokens * kRows);
      Linear(pool, weight, x.data(), kTokens, out.data());
      ExpectClose(out, expected, 1e-6);
      std::vector<float> leaves(kTokens * kRows);
      LinearRowParallel(pool, weight, x.data(), kTokens, leaves.data());
      ExpectClose(leaves, expected, 1e-6);
      std::vector<float> alone(kRows);
      for (int64_t t = 0; t < kTokens; ++t) {
        Linear(pool, weight, &x[t * kColumns], 1, alone.data());
        EXPECT_TRUE(SameBits(
            alone, {out.begin() + t * kRows, out.begin() + (t + 1) * kRows}));
      }
    }
  }
}

TEST(LinearTest, HalfPrecisionWeightsAreReadExactly) {
  ThreadPool pool(1);
  const uint16_t bf16[16] = {0x3f80, 0xc000, 0x3f00};  // 1, -2, 0.5
  const uint16_t fp16[16] = {0x3c00, 0xc000, 0x3800};
  const std::vector<float> x = {1, 10, 100, 0, 0, 0, 0, 0,
                                0, 0,  0,   0, 0, 0, 0, 0};
  float out = 0.0f;
  Weight weight = {.dtype = WeightDtype::kBf16,
                   .data = reinterpret_cast<const std::byte*>(bf16),
                   .rows = 1,
                   .columns = 16};
  Linear(pool, weight, x.data(), 1, &out);
  EXPECT_EQ(out, 31.0f);
  weight.dtype = WeightDtype::kFp16;
  weight.data = reinterpret_cast<const std::byte*>(fp16);
  Linear(pool, weight, x.data(), 1, &out);
  EXPECT_EQ(out, 31.0f);
}

}  // namespace
}  // namespace invar::cpu
