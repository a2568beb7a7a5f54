// Prompts in MHA form against the absorbed form, which has tests of its own
// against float64: the same function by other sums, so near and not equal.
#include "kernels/cuda/mha_prompt.h"

#include <cuda_fp8.h>

#include <algorithm>

#include "kernels/cuda/gemm_test_values.h"

namespace invar::cuda::testing {
namespace {

constexpr int64_t kHeads = 3;
constexpr float kScale = 0.05f;

struct Case {
  std::string name;
  WeightDtype weights;
  KvDtype cache;
  bool scales;  // of kv_b's rows and inputs
};

class MhaPromptTest : public GpuTestWithParam<Case> {};

// Values as a cache of `dtype` has them.
std::vector<uint8_t> CacheBytes(KvDtype dtype, const std::vector<float>& x) {
  std::vector<uint8_t> bytes;
  for (const float value : x) {
    if (dtype == KvDtype::kBf16) {
      const __nv_bfloat16 rounded = __float2bfloat16_rn(value);
      uint16_t bits;
      std::memcpy(&bits, &rounded, 2);
      bytes.push_back(static_cast<uint8_t>(bits));
      bytes.push_back(static_cast<uint8_t>(bits >> 8));
    } else {
      bytes.push_back(__nv_cvt_float_to_fp8(
          value, __NV_SATFINITE,
          dtype == KvDtype::kFp8E5m2 ? __NV_E5M2 : __NV_E4M3));
    }
  }
  return bytes;
}

// Three prompts' chunks, which begin and end anywhere, with tokens between them
// that are not theirs.
struct Step {
  MhaSequences prompts;
  std::vector<int32_t> positions, tables, blocks;

  Step() {
    Strangers(2);
    Prompt(0, 333);
    Prompt(130, 1);
    Strangers(3);
    Prompt(517, 257);
  }
  int64_t tokens() const { return static_cast<int64_t>(positions.size()); }

  void Strangers(int count) {
    for (int i = 0; i < count; ++i) Token(0, NewTable(1));
  }
  void Prompt(int32_t first_position, int32_t count) {
    MhaSequence sequence = {.first_token = static_cast<int32_t>(tokens()),
                            .tokens = count,
                            .first_position = first_position,
                            .table = NewTable(first_position + count)};
    prompts.Add(sequence);
    for (int32_t i = 0; i < count; ++i) {
      Token(first_position + i, sequence.table);
    }
  }

 private:
  void Token(int32_t position, int32_t table) {
    positions.push_back(position);
    tables.push_back(table);
  }
  int32_t NewTable(int64_t rows) {
    const auto table = static_cast<int32_t>(blocks.size());
    for (int64_t i = 0; i * kBlockTokens < rows; ++i) {
      blocks.push_back(static_cast<int32_t>(blocks.size()));
    }
    return table;
  }
};

TEST_P(MhaPromptTest, IsNearTheAbsorbedForm) {
  const Case& c = GetParam();
  const Step step;
  const int64_t tokens = step.tokens();
  const int64_t block_count = static_cast<int64_t>(step.blocks.size());
  // The cache's blocks in reverse order; rows past an end are NaN.
  std::vector<int32_t> ids(step.blocks.rbegin(), step.blocks.rend());
  const int64_t row_bytes = kRow * KvElementBytes(c.cache);
  const auto values = CacheBytes(
      c.cache, SpreadValues(block_count * kBlockTokens * kRow, 1, -5, 1));
  std::vector<uint8_t> bytes(values.size(), 0xff);
  for (int64_t t = 0; t < tokens; ++t) {
    // Every earlier row of the token's sequence is there as well.
    for (int64_t p = 0; p <= step.positions[t]; ++p) {
      const int64_t row =
          ids[step.tables[t] + p / kBlockTokens] * kBlockTokens +
          p % kBlockTokens;
      std::copy_n(&values[row * row_bytes], row_bytes, &bytes[row * row_bytes]);
    }
  }
  const auto cache_data = Upload(bytes);
  const KvLayer cache = {c.cache,
                         reinterpret_cast<std::byte*>(cache_data.data()), 1.0f};
  const auto k_data = Upload(
      Encode(c.weights, SpreadValues(kHeads * kLatent * kNope, 2, -6, -1))
          .bytes);
  const auto v_data = Upload(
      Encode(c.weights, SpreadValues(kHeads * kLatent * kValue, 3, -6, -1))
          .bytes);
  const auto factors = [&](int64_t count, uint64_t seed) {
    std::vector<float> of = SpreadValues(count, seed, -1, 1);
    for (float& x : of) x = std::abs(x);
    return Upload(of);
  };
  const auto k_inputs = factors(kHeads * kNope, 4);
  const auto v_sums = factors(kHeads * kValue, 5);
  HeadProjection k = {c.weights, k_data.data(), 0.5f, kHeads};
  HeadProjection v = {c.weights, v_data.data(), 0.125f, kHeads};
  if (c.scales) {
    k.input_scales = k_inputs.data();
    v.row_scales = v_sums.data();
  }
  const auto q =
      Upload(SpreadValues(tokens * kHeads * (kNope + kRope), 6, -4, 0));
  const auto positions = Upload(step.positions);
  const auto tables = Upload(step.tables);
  const auto blocks = Upload(ids);
  const TokenPlaces places = {tokens, positions.data(), tables.data(),
                              blocks.data()};
  constexpr int64_t kPositions = 1024;
  std::vector<float> cosine(kPositions * kRope / 2), sine(cosine.size());
  for (size_t i = 0; i < cosine.size(); ++i) {
    cosine[i] = std::cos(0.01f * static_cast<float>(i));
    sine[i] = std::sin(0.01f * static_cast<float>(i));
  }
  const auto cosines = Upload(cosine);
  const auto sines = Upload(sine);
  const RopeAngles angles = {cosines.data(), sines.data()};
  const LaunchOptions options = {.stream = stream().get(), .overlap = true};

  const auto absorbed = Poisoned<float>(tokens * kHeads * kRow);
  const auto attended = Poisoned<float>(tokens * kHeads * kLatent);
  const auto expected = Poisoned<float>(tokens * kHeads * kValue);
  AbsorbQuery(options, k, places, angles, q.data(), absorbed.data());
  MlaAttention(options, places, kPositions - 1, absorbed.data(), kHeads, kScale,
               cache, nullptr, attended.data());
  AbsorbValue(options, v, tokens, attended.data(), expected.data());

  constexpr int64_t kOutputs = kHeads * (kNope + kValue);
  const auto weights = Poisoned<__nv_bfloat16>(kOutputs * kLatent);
  const int64_t rows = step.prompts.rows;
  const auto latents = Poisoned<__nv_bfloat16>(rows * kLatent);
  const auto rope_keys = Poisoned<__nv_bfloat16>(rows * kRope);
  const auto keys_values = Poisoned<__nv_bfloat16>(rows * kOutputs);
  const auto query = Poisoned<__nv_bfloat16>(tokens * kHeads * (kNope + kRope));
  const auto out = Poisoned<float>(tokens * kHeads * kValue);
  MhaWeights(options, k, v, weights.data());
  MhaQuery(options, places, angles, kHeads, q.data(), query.data());
  MhaGather(options, step.prompts, blocks.data(), cache, latents.data(),
            rope_keys.data());
  GemmWeight weight;
  GemmInput latent_input, rope_input, key_input, query_input;
  constexpr WeightDtype kBf16 = WeightDtype::kBf16;
  ASSERT_TRUE(
      MakeGemmWeight(kBf16, weights.data(), kOutputs, kLatent, &weight) &&
      MakeGemmInput(kBf16, latents.data(), rows, kLatent, &latent_input) &&
      MakeGemmInput(kBf16, rope_keys.data(), rows, kRope, &rope_input) &&
      MakeGemmInput(kBf16, keys_values.data(), rows, kOutputs, &key_input) &&
      MakeGemmInput(kBf16, query.data(), tokens, kHeads * (kNope + kRope),
                    &query_input));
  weight.scale = k.scale;
  Gemm(weight, kLatent, latent_input, rows, GemmOutput::kBf16,
       keys_values.data(), options);
  MhaAttention(options, step.prompts, kHeads, kScale, v.scale / k.scale,
               query_input, key_input, rope_input,
               {.data = out.data(), .dtype = WeightDtype::kFp32});
  stream().Synchronize();

  const std::vector<float> actual = out.Download();
  const std::vector<float> other = expected.Download();
  constexpr int64_t kToken = kHeads * kValue;
  std::vector<bool> is_prompts(tokens);
  for (int s = 0; s < step.prompts.count; ++s) {
    const MhaSequence& sequence = step.prompts.of[s];
    for (int32_t i = 0; i < sequence.tokens; ++i) {
      is_prompts[sequence.first_token + i] = true;
    }
  }
  double largest = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    const std::vector<float> mine(&actual[t * kToken],
                                  &actual[t * kToken] + kToken);
    if (!is_prompts[t]) {
      EXPECT_TRUE(std::isnan(mine[0])) << "token " << t << " is no prompt's";
      continue;
    }
    const std::vector<float> theirs(&other[t * kToken],
                                    &other[t * kToken] + kToken);
    const double error = RelativeError(mine, theirs);
    largest = std::max(largest, error);
    ASSERT_LT(error, 0.02) << "token " << t << " at " << step.positions[t];
  }
  std::printf("%s: a token's error at most %.1e\n", c.name.c_str(), largest);
}

INSTANTIATE_TEST_SUITE_P(
    Dtypes, MhaPromptTest,
    ::testing::Values(
        Case{"fp8_e4m3", WeightDtype::kFp8E4m3, KvDtype::kFp8E4m3, false},
        Case{"fp8_e5m2_scales", WeightDtype::kFp8E4m3, KvDtype::kFp8E5m2, true},
        Case{"bf16_bf16", WeightDtype::kBf16, KvDtype::kBf16, false},
        Case{"fp16_e4m3", WeightDtype::kFp16, KvDtype::kFp8E4m3, true}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace invar::cuda::testing
