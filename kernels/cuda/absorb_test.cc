#include "kernels/cuda/ops.h"
#include "kernels/cuda/testing/gpu_test.h"

namespace invar::cuda {
namespace {

using testing::Poisoned;
using testing::RelativeError;
using testing::SameBits;
using testing::SpreadValues;
using testing::Upload;

constexpr int64_t kHeads = 3;
constexpr float kWeightScale = 0.03f;

// Random weights of a dtype: their bytes, and what they mean.
struct Weights {
  std::vector<uint8_t> bytes;
  std::vector<double> values;

  Weights(WeightDtype dtype, int64_t count) {
    for (const float x : SpreadValues(count, 3, -6, 6)) {
      if (dtype == WeightDtype::kFp8E4m3) {
        // The code of the exponent, with three bits of the fraction.
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        const int exponent = static_cast<int>(bits >> 23 & 0xff) - 127;
        const int fraction = static_cast<int>(bits >> 20 & 7);
        bytes.push_back(static_cast<uint8_t>((bits >> 24 & 0x80) |
                                             (exponent + 7) << 3 | fraction));
        const double value = std::ldexp(8 + fraction, exponent - 3);
        values.push_back(x < 0 ? -value : value);
        continue;
      }
      // bf16: the upper half.
      uint32_t bits;
      std::memcpy(&bits, &x, 4);
      bits &= 0xffff0000;
      float value;
      std::memcpy(&value, &bits, 4);
      bytes.push_back(static_cast<uint8_t>(bits >> 16));
      bytes.push_back(static_cast<uint8_t>(bits >> 24));
      values.push_back(value);
    }
  }
};

// out[t, h] = kWeightScale W_h x[t, h], rows of x at `stride`.
std::vector<double> Product(const Weights& w, int64_t rows, int64_t columns,
                            const std::vector<float>& x, int64_t stride) {
  std::vector<double> out;
  const int64_t count = static_cast<int64_t>(x.size()) / stride;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t r = 0; r < rows; ++r) {
      const double* row = &w.values[(i % kHeads * rows + r) * columns];
      double sum = 0.0;
      for (int64_t k = 0; k < columns; ++k) sum += row[k] * x[i * stride + k];
      out.push_back(sum * kWeightScale);
    }
  }
  return out;
}

class AbsorbTest : public testing::GpuTestWithParam<WeightDtype> {
 protected:
  double bound() const {
    return GetParam() == WeightDtype::kBf16 ? 4e-3 : 5e-4;
  }
};

TEST_P(AbsorbTest, ValuesMatchDoublePrecisionAndEachTokenItself) {
  const Weights w(GetParam(), kHeads * kValue * kLatent);
  const auto device_w = Upload(w.bytes);
  const HeadProjection v = {GetParam(),
                            reinterpret_cast<const std::byte*>(device_w.data()),
                            kWeightScale, kHeads};
  constexpr int64_t kTokens = 37;
  const auto x = SpreadValues(kTokens * kHeads * kLatent, 4, -20, 8);
  const auto device_x = Upload(x);
  const auto out = Poisoned<float>(kTokens * kHeads * kValue);
  AbsorbValue({.stream = stream().get()}, v, kTokens, device_x.data(),
              out.data());
  stream().Synchronize();
  const auto all = out.Download();
  EXPECT_LT(RelativeError(all, Product(w, kValue, kLatent, x, kLatent)),
            bound());
  for (int64_t t = 0; t < kTokens; t += 9) {
    const auto one = Poisoned<float>(kHeads * kValue);
    AbsorbValue({.stream = stream().get()}, v, 1,
                device_x.data() + t * kHeads * kLatent, one.data());
    stream().Synchronize();
    EXPECT_TRUE(SameBits(one.Download().data(), &all[t * kHeads * kValue],
                         kHeads * kValue));
  }
}

// Factors are those of rows and blocks of kv_b: of the inputs, before they are
// rounded, and of the sums.
TEST_P(AbsorbTest, FactorsMultiplyInputsAndSums) {
  constexpr int64_t kTokens = 18;
  const Weights w(GetParam(), kHeads * kValue * kLatent);
  const auto device_w = Upload(w.bytes);
  const auto x = SpreadValues(kTokens * kHeads * kLatent, 4, -20, 8);
  const auto inputs = SpreadValues(kHeads * kLatent, 5, -4, 4);
  const auto rows = SpreadValues(kHeads * kValue, 6, -4, 4);
  const auto device_inputs = Upload(inputs);
  const auto device_rows = Upload(rows);
  HeadProjection v = {GetParam(),
                      reinterpret_cast<const std::byte*>(device_w.data()),
                      kWeightScale, kHeads};
  const auto run = [&](const std::vector<float>& values) {
    const auto device_x = Upload(values);
    const auto out = Poisoned<float>(kTokens * kHeads * kValue);
    AbsorbValue({.stream = stream().get()}, v, kTokens, device_x.data(),
                out.data());
    stream().Synchronize();
    return out.Download();
  };
  auto multiplied = x;
  for (size_t i = 0; i < x.size(); ++i) {
    multiplied[i] = x[i] * inputs[i % inputs.size()];
  }
  auto expected = run(multiplied);
  for (size_t i = 0; i < expected.size(); ++i) {
    expected[i] = expected[i] * rows[i % rows.size()];
  }
  v.input_scales = device_inputs.data();
  v.row_scales = device_rows.data();
  const auto actual = run(x);
  EXPECT_TRUE(SameBits(actual.data(), expected.data(), actual.size()));

  // As o_proj's inputs: the same values, rounded.
  const auto device_x = Upload(x);
  const auto rounded = Poisoned<uint16_t>(expected.size());
  AbsorbValue({.stream = stream().get()}, v, kTokens, device_x.data(),
              InputSink{.data = rounded.data(), .dtype = WeightDtype::kBf16});
  stream().Synchronize();
  const auto halves = rounded.Download();
  for (size_t i = 0; i < expected.size(); ++i) {
    const uint32_t bits = static_cast<uint32_t>(halves[i]) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    ASSERT_LE(std::abs(value - expected[i]), 0x1p-8f * std::abs(expected[i]));
  }
}

TEST_P(AbsorbTest, QueriesMatchDoublePrecisionAndAreRotated) {
  const Weights w(GetParam(), kHeads * kLatent * kNope);
  const auto device_w = Upload(w.bytes);
  const HeadProjection k = {GetParam(),
                            reinterpret_cast<const std::byte*>(device_w.data()),
                            kWeightScale, kHeads};
  constexpr int64_t kTokens = 21;
  constexpr int64_t kWidth = kNope + kRope;
  const auto q = SpreadValues(kTokens * kHeads * kWidth, 4, -20, 8);
  std::vector<int32_t> positions;
  for (int32_t t = 0; t < kTokens; ++t) positions.push_back(kTokens - 1 - t);
  const auto cosines = SpreadValues(kTokens * kRope / 2, 5, -3, 0);
  const auto sines = SpreadValues(kTokens * kRope / 2, 6, -3, 0);
  const auto device_q = Upload(q);
  const auto device_positions = Upload(positions);
  const auto device_cosines = Upload(cosines);
  const auto device_sines = Upload(sines);
  const auto out = Poisoned<float>(kTokens * kHeads * kRow);
  AbsorbQuery({.stream = stream().get()}, k,
              {kTokens, device_positions.data(), nullptr, nullptr},
              {device_cosines.data(), device_sines.data()}, device_q.data(),
              out.data());
  stream().Synchronize();
  const auto query = out.Download();
  std::vector<float> latents;
  for (int64_t i = 0; i < kTokens * kHeads; ++i) {
    latents.insert(latents.end(), &query[i * kRow], &query[i * kRow + kLatent]);
    for (int64_t r = 0; r < kRope; r += 2) {
      const int64_t angle = positions[i / kHeads] * (kRope / 2) + r / 2;
      const float a = q[i * kWidth + kNope + r];
      const float b = q[i * kWidth + kNope + r + 1];
      // The build rounds every product, on both sides.
      EXPECT_EQ(query[i * kRow + kLatent + r],
                a * cosines[angle] - b * sines[angle]);
      EXPECT_EQ(query[i * kRow + kLatent + r + 1],
                a * sines[angle] + b * cosines[angle]);
    }
  }
  EXPECT_LT(RelativeError(latents, Product(w, kLatent, kNope, q, kWidth)),
            bound());
}

// Many tokens have a block for 64 of them, some and few for 16, of eight warps
// and of four.
TEST_P(AbsorbTest, ManyTokensHaveTheBitsOfFew) {
  constexpr int64_t kTokens = 549;
  constexpr int64_t kSome = 183;
  constexpr int64_t kFew = 61;
  constexpr int64_t kWidth = kNope + kRope;
  const Weights w(GetParam(), kHeads * kValue * kLatent);
  const auto device_w = Upload(w.bytes);
  const auto inputs = Upload(SpreadValues(kHeads * kLatent, 5, -4, 4));
  const auto rows = Upload(SpreadValues(kHeads * kLatent, 6, -4, 4));
  const HeadProjection projection = {
      GetParam(),    reinterpret_cast<const std::byte*>(device_w.data()),
      kWeightScale,  kHeads,
      inputs.data(), rows.data()};
  const auto x = Upload(SpreadValues(kTokens * kHeads * kLatent, 4, -20, 8));
  for (const WeightDtype dtype : {WeightDtype::kFp32, WeightDtype::kFp8E4m3,
                                  WeightDtype::kBf16, WeightDtype::kFp16}) {
    const int64_t row = kHeads * kValue * WeightElementBytes(dtype);
    const auto run = [&](int64_t step) {
      const auto out = Poisoned<std::byte>(kTokens * row);
      for (int64_t t = 0; t < kTokens; t += step) {
        AbsorbValue(
            {.stream = stream().get()}, projection, step,
            x.data() + t * kHeads * kLatent,
            InputSink{
                .data = out.data() + t * row, .dtype = dtype, .scale = 3e-3f});
      }
      stream().Synchronize();
      return out.Download();
    };
    EXPECT_TRUE(run(kTokens) == run(kFew)) << static_cast<int>(dtype);
    EXPECT_TRUE(run(kSome) == run(kFew)) << static_cast<int>(dtype);
  }
  std::vector<int32_t> positions;
  for (int32_t t = 0; t < kTokens; ++t) positions.push_back(kTokens - 1 - t);
  const auto device_positions = Upload(positions);
  const auto cosines = Upload(SpreadValues(kTokens * kRope / 2, 7, -3, 0));
  const auto sines = Upload(SpreadValues(kTokens * kRope / 2, 8, -3, 0));
  const auto q = Upload(SpreadValues(kTokens * kHeads * kWidth, 9, -20, 8));
  const auto run = [&](int64_t step) {
    const auto out = Poisoned<float>(kTokens * kHeads * kRow);
    for (int64_t t = 0; t < kTokens; t += step) {
      AbsorbQuery({.stream = stream().get()}, projection,
                  {step, device_positions.data() + t, nullptr, nullptr},
                  {cosines.data(), sines.data()},
                  q.data() + t * kHeads * kWidth,
                  out.data() + t * kHeads * kRow);
    }
    stream().Synchronize();
    return out.Download();
  };
  const auto all = run(kTokens);
  EXPECT_TRUE(SameBits(all.data(), run(kFew).data(), all.size()));
  EXPECT_TRUE(SameBits(all.data(), run(kSome).data(), all.size()));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, AbsorbTest,
                         ::testing::Values(WeightDtype::kFp8E4m3,
                                           WeightDtype::kBf16),
                         [](const auto& info) {
                           return info.param == WeightDtype::kBf16 ? "bf16"
                                                                   : "e4m3";
                         });

}  // namespace
}  // namespace invar::cuda
