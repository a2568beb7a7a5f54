// What lies between the products, against the CPU backend: the same bits where
// no sum is involved.
#include <cmath>

#include "kernels/cpu/thread_pool.h"
#include "kernels/cuda/gemm_test_values.h"
#include "kernels/cuda/ops_sample.h"
#include "kernels/ops.h"

namespace invar::cuda::testing {
namespace {

class RmsNormTest : public GpuTest {};

TEST_F(RmsNormTest, AddsNormsAndQuantises) {
  cpu::ThreadPool pool(2);
  for (const int64_t size : {16, 384, 2048, 5120}) {
    for (const int64_t rows : {1, 7, 65}) {
      const int64_t top_k = rows == 7 ? 11 : 3;  // eight are loaded ahead
      auto hidden = SpreadValues(rows * size, 1);
      const Codes shared =
          Encode(WeightDtype::kBf16, SpreadValues(rows * size, 2));
      const Codes slots =
          Encode(WeightDtype::kBf16, SpreadValues(rows * top_k * size, 3));
      const auto weights = cpu::RandomValues(rows * top_k, 4);
      const auto gain = SpreadValues(size, 5, -2, 2);
      const auto d_hidden = Upload(hidden);
      const auto d_alone = Upload(hidden);
      const auto d_shared = Upload(shared.bytes);
      const auto d_slots = Upload(slots.bytes);
      const auto d_weights = Upload(weights);
      const auto d_gain = Upload(gain);
      const auto normed = Poisoned<float>(rows * size);
      const auto codes = Poisoned<uint8_t>(rows * size);
      const auto bf16 = Poisoned<uint16_t>(rows * size);
      const auto halves = [](const DeviceBuffer<std::byte>& bytes) {
        return reinterpret_cast<const __nv_bfloat16*>(bytes.data());
      };
      const Addend addend = {halves(d_shared), halves(d_slots),
                             d_weights.data(), top_k};
      const LaunchOptions launch = {.stream = stream().get(), .overlap = true};
      RmsNorm({.hidden = d_hidden.data(),
               .hidden_stride = size,
               .addend = addend,
               .gain = d_gain.data(),
               .rows = rows,
               .size = size,
               .normed = normed.data(),
               .inputs = {{codes.data(), WeightDtype::kFp8E4m3, 0.02f},
                          {bf16.data(), WeightDtype::kBf16}}},
              launch);
      Combine(addend, rows, size, d_alone.data(), launch);
      stream().Synchronize();

      const std::vector<float> added(shared.values.begin(),
                                     shared.values.end());
      const std::vector<float> ranks(slots.values.begin(), slots.values.end());
      cpu::Combine(pool, added.data(), ranks.data(), weights.data(), rows,
                   top_k, size, hidden.data());
      EXPECT_TRUE(cpu::SameBits(d_hidden.Download(), hidden));
      EXPECT_TRUE(cpu::SameBits(d_alone.Download(), hidden));
      std::vector<float> expected(rows * size);
      cpu::RmsNorm(pool, hidden.data(), size, gain.data(), 1e-6f, rows, size,
                   expected.data(), size);
      const auto actual = normed.Download();
      EXPECT_LT(RelativeError(actual, expected), 1e-6);
      auto scaled = actual;
      for (float& v : scaled) v /= 0.02f;
      const auto want = Encode(WeightDtype::kFp8E4m3, scaled).bytes;
      EXPECT_TRUE(SameBits(reinterpret_cast<const uint8_t*>(want.data()),
                           codes.Download().data(), rows * size));
      const auto want16 = Encode(WeightDtype::kBf16, actual).bytes;
      EXPECT_TRUE(SameBits(reinterpret_cast<const uint16_t*>(want16.data()),
                           bf16.Download().data(), rows * size));

      // Scales that the norm makes are those of the rows that it wrote.
      for (const DynamicInputs dynamic :
           {DynamicInputs::kToken, DynamicInputs::kGroup}) {
        const auto fused = Poisoned<uint8_t>(rows * size);
        const auto alone = Poisoned<uint8_t>(rows * size);
        const auto fused_scales = Poisoned<float>(rows * ScaleBlocks(size));
        const auto alone_scales = Poisoned<float>(rows * ScaleBlocks(size));
        RmsNorm({.hidden = d_hidden.data(),
                 .hidden_stride = size,
                 .addend = {},
                 .gain = d_gain.data(),
                 .rows = rows,
                 .size = size,
                 .row_ids = nullptr,
                 .normed = nullptr,
                 .inputs = {{fused.data(), WeightDtype::kFp8E4m3, 1.0f, dynamic,
                             fused_scales.data()},
                            {bf16.data(), WeightDtype::kBf16}}},
                launch);
        QuantizeInputs(normed.data(), rows, size,
                       {alone.data(), WeightDtype::kFp8E4m3, 1.0f, dynamic,
                        alone_scales.data()},
                       launch);
        stream().Synchronize();
        EXPECT_TRUE(SameBits(fused.Download().data(), alone.Download().data(),
                             rows * size));
        EXPECT_TRUE(SameBits(
            fused_scales.Download().data(), alone_scales.Download().data(),
            rows * (dynamic == DynamicInputs::kToken ? 1 : ScaleBlocks(size))));
      }

      // Rows picked out of place are the same rows.
      if (rows < 7) continue;
      const auto ids = Upload(std::vector<int32_t>{5, 0, 6});
      const auto picked = Poisoned<float>(3 * size);
      RmsNorm({.hidden = d_hidden.data(),
               .hidden_stride = size,
               .addend = {},
               .gain = d_gain.data(),
               .rows = 3,
               .size = size,
               .row_ids = ids.data(),
               .normed = picked.data(),
               .inputs = {}},
              launch);
      stream().Synchronize();
      EXPECT_TRUE(SameBits(picked.Download().data(), &actual[5 * size], size));
    }
  }
}

// With many rows a block goes on from one to the next: a row is the same as
// among few.
TEST_F(RmsNormTest, ARowIsTheSameAmongMany) {
  constexpr int64_t kRows = 1100;
  constexpr int64_t kFew = 5;
  for (const int64_t size : {1040, 2048}) {
    for (const int64_t top_k : {0, 2, 6, 7, 8, 9}) {
      const auto hidden = SpreadValues(kRows * size, 1);
      const auto shared = Upload(
          Encode(WeightDtype::kBf16, SpreadValues(kRows * size, 2)).bytes);
      const auto slots = Upload(
          Encode(WeightDtype::kBf16,
                 SpreadValues(std::max<int64_t>(1, kRows * top_k) * size, 3))
              .bytes);
      const auto weights = Upload(cpu::RandomValues(kRows * top_k + 1, 4));
      const auto gain = Upload(SpreadValues(size, 5, -2, 2));
      struct Outputs {
        std::vector<float> hidden, normed, roots;
        std::vector<uint8_t> codes;
      };
      const auto run = [&](int64_t first, int64_t rows) {
        const auto d_hidden =
            Upload(std::vector<float>(hidden.begin() + first * size,
                                      hidden.begin() + (first + rows) * size));
        const auto normed = Poisoned<float>(rows * size);
        const auto roots = Poisoned<float>(rows);
        const auto codes = Poisoned<uint8_t>(rows * size);
        const auto halves = [&](const DeviceBuffer<std::byte>& bytes,
                                int64_t of_row) {
          return reinterpret_cast<const __nv_bfloat16*>(bytes.data()) +
                 first * of_row;
        };
        RmsNorm({.hidden = d_hidden.data(),
                 .hidden_stride = size,
                 .addend = {halves(shared, size),
                            top_k == 0 ? nullptr : halves(slots, top_k * size),
                            weights.data() + first * top_k, top_k},
                 .gain = gain.data(),
                 .rows = rows,
                 .size = size,
                 .normed = normed.data(),
                 .roots = roots.data(),
                 .inputs = {{codes.data(), WeightDtype::kFp8E4m3, 0.02f}, {}}},
                {.stream = stream().get(), .overlap = true});
        stream().Synchronize();
        return Outputs{d_hidden.Download(), normed.Download(), roots.Download(),
                       codes.Download()};
      };
      const Outputs many = run(0, kRows);
      for (const int64_t first : {int64_t{0}, int64_t{533}, kRows - kFew}) {
        const Outputs few = run(first, kFew);
        EXPECT_TRUE(SameBits(few.hidden.data(), &many.hidden[first * size],
                             kFew * size));
        EXPECT_TRUE(SameBits(few.normed.data(), &many.normed[first * size],
                             kFew * size));
        EXPECT_TRUE(SameBits(few.roots.data(), &many.roots[first], kFew));
        EXPECT_TRUE(
            SameBits(few.codes.data(), &many.codes[first * size], kFew * size))
            << size << " values, " << top_k << " slots, from row " << first;
      }
    }
  }
}

// Against float64: 2^x and 1 / x are the machine's.
TEST_F(RmsNormTest, SiluMulIsNearTheEquation) {
  constexpr int64_t kTokens = 5;
  constexpr int64_t kSize = 400;
  auto gate_up = SpreadValues(kTokens * 2 * kSize, 1, -20, 7);
  gate_up[0] = 200.0f;
  gate_up[1] = -200.0f;
  gate_up[2] = 0.0f;
  const auto data = Upload(gate_up);
  const auto out = Poisoned<float>(kTokens * kSize);
  SiluMul(data.data(), kTokens, kSize, {out.data(), WeightDtype::kFp32},
          {.stream = stream().get()});
  stream().Synchronize();
  const auto actual = out.Download();
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t i = 0; i < kSize; ++i) {
      const double gate = gate_up[t * 2 * kSize + i];
      const double up = gate_up[(t * 2 + 1) * kSize + i];
      const double expected = gate / (1.0 + std::exp(-gate)) * up;
      // The exponent is rounded: its error grows with it.
      const double allowed =
          (5e-7 + 1.2e-7 * std::abs(gate)) * std::abs(expected) +
          1e-36 * (1.0 + std::abs(gate * up));
      EXPECT_NEAR(actual[t * kSize + i], expected, allowed)
          << t << " " << i << " " << gate << " " << up;
    }
  }
}

TEST_F(RmsNormTest, EmbeddingTakesItsRows) {
  constexpr int64_t kHidden = 272;
  const Codes table = Encode(WeightDtype::kBf16, SpreadValues(11 * kHidden, 1));
  const auto data = Upload(table.bytes);
  const std::vector<int32_t> ids = {10, 0, 3, 3};
  const auto d_ids = Upload(ids);
  const auto out = Poisoned<float>(ids.size() * kHidden);
  Embedding(WeightDtype::kBf16, data.data(), StepTokens{.ids = d_ids.data()},
            ids.size(), kHidden, out.data(), {.stream = stream().get()});
  stream().Synchronize();
  const auto actual = out.Download();
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(actual[i],
              table.values[ids[i / kHidden] * kHidden + i % kHidden]);
  }
}

TEST_F(RmsNormTest, EmbeddingTakesWhatWasSampled) {
  constexpr int64_t kHidden = 272;
  const Codes table = Encode(WeightDtype::kBf16, SpreadValues(11 * kHidden, 1));
  const auto data = Upload(table.bytes);
  std::vector<SampledRow> sampled(3, SampledRow{});
  for (size_t i = 0; i < sampled.size(); ++i) {
    sampled[i].id = static_cast<int32_t>(7 + i);
  }
  const auto d_sampled = Upload(sampled);
  const std::vector<int32_t> ids = {~0, 4, ~2, ~1, ~1};
  const std::vector<int32_t> expected = {7, 4, 9, 8, 8};
  const auto d_ids = Upload(ids);
  const auto finite = Poisoned<uint8_t>(ids.size());
  const auto out = Poisoned<float>(ids.size() * kHidden);
  Embedding(WeightDtype::kBf16, data.data(),
            StepTokens{.ids = d_ids.data(),
                       .sampled = d_sampled.data(),
                       .finite = finite.data()},
            ids.size(), kHidden, out.data(), {.stream = stream().get()});
  stream().Synchronize();
  const auto actual = out.Download();
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(actual[i],
              table.values[expected[i / kHidden] * kHidden + i % kHidden]);
  }
  EXPECT_EQ(finite.Download(), std::vector<uint8_t>(ids.size(), 1));
}

}  // namespace
}  // namespace invar::cuda::testing
