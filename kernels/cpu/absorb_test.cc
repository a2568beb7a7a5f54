#include <gtest/gtest.h>

#include "kernels/cpu/test_values.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

constexpr int64_t kHeads = 3;
constexpr int64_t kNope = 16;
constexpr int64_t kRope = 16;
constexpr int64_t kValue = 80;   // several claims, the last one short
constexpr int64_t kLatent = 80;  // no multiple of a register block

TEST(AbsorbTest, BothHalvesMatchDoublePrecisionForEveryTokenCount) {
  ThreadPool pool(2);
  const auto w = RandomValues(kHeads * (kNope + kValue) * kLatent, 1);
  KvUpProjection kv_b = {
      .weight = Fp32Weight(w, kHeads * (kNope + kValue), kLatent),
      .heads = kHeads,
      .nope = kNope,
      .rope = kRope,
      .value = kValue};
  kv_b.weight.scale = 0.25f;
  kv_b.weight.input_scale = 0.5f;  // to be ignored
  for (const int64_t tokens : {1, 2, 3, 5, 20}) {
    const auto q = RandomValues(tokens * kHeads * (kNope + kRope), 2);
    const auto attended = RandomValues(tokens * kHeads * kLatent, 3);
    std::vector<float> query(tokens * kHeads * (kLatent + kRope));
    std::vector<float> out(tokens * kHeads * kValue);
    AbsorbQuery(pool, kv_b, q.data(), tokens, query.data());
    AbsorbValue(pool, kv_b, attended.data(), tokens, out.data());
    std::vector<double> expected_query;
    std::vector<double> expected_out;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t h = 0; h < kHeads; ++h) {
        const float* head = &w[h * (kNope + kValue) * kLatent];
        const float* q_head = &q[(t * kHeads + h) * (kNope + kRope)];
        for (int64_t c = 0; c < kLatent; ++c) {
          double sum = 0.0;
          for (int64_t n = 0; n < kNope; ++n) {
            sum += static_cast<double>(q_head[n]) * head[n * kLatent + c];
          }
          expected_query.push_back(sum * 0.25);
        }
        for (int64_t r = 0; r < kRope; ++r) {
          expected_query.push_back(q_head[kNope + r]);
        }
        for (int64_t v = 0; v < kValue; ++v) {
          double sum = 0.0;
          for (int64_t c = 0; c < kLatent; ++c) {
            sum +=
                static_cast<double>(attended[(t * kHeads + h) * kLatent + c]) *
                head[(kNope + v) * kLatent + c];
          }
          expected_out.push_back(sum * 0.25);
        }
      }
    }
    ExpectClose(query, expected_query, 1e-6);
    ExpectClose(out, expected_out, 1e-6);
  }
}

TEST(AbsorbTest, ATokenHasTheSameBitsInAnyCompany) {
  ThreadPool pool(2);
  const auto w = RandomValues(kHeads * (kNope + kValue) * kLatent, 1);
  const KvUpProjection kv_b = {
      .weight = Fp32Weight(w, kHeads * (kNope + kValue), kLatent),
      .heads = kHeads,
      .nope = kNope,
      .rope = kRope,
      .value = kValue};
  constexpr int64_t kTokens = 23;
  constexpr int64_t kIn = kHeads * (kNope + kRope);
  constexpr int64_t kOut = kHeads * (kLatent + kRope);
  const auto q = RandomValues(kTokens * kIn, 2);
  std::vector<float> all(kTokens * kOut);
  std::vector<float> alone(kTokens * kOut);
  AbsorbQuery(pool, kv_b, q.data(), kTokens, all.data());
  for (int64_t t = 0; t < kTokens; ++t) {
    AbsorbQuery(pool, kv_b, &q[t * kIn], 1, &alone[t * kOut]);
  }
  EXPECT_TRUE(SameBits(all, alone));
}

// Scales of rows and of blocks give what weights multiplied by them give.
TEST(AbsorbTest, ScalesOfRowsAndBlocks) {
  ThreadPool pool(2);
  constexpr int64_t kWide = 144;
  constexpr int64_t kRows = kHeads * (kNope + kValue);
  const auto w = RandomValues(kRows * kWide, 1);
  std::vector<float> scales = RandomValues(kRows, 4);
  for (float& scale : scales) scale = 1.0f + 0.5f * scale;
  for (const bool blocks : {false, true}) {
    auto scaled = w;
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t c = 0; c < kWide; ++c) {
        scaled[r * kWide + c] *=
            blocks ? scales[r / 128 * 2 + c / 128] : scales[r];
      }
    }
    KvUpProjection kv_b = {.weight = Fp32Weight(scaled, kRows, kWide),
                           .heads = kHeads,
                           .nope = kNope,
                           .rope = kRope,
                           .value = kValue};
    KvUpProjection with_scales = kv_b;
    with_scales.weight = Fp32Weight(w, kRows, kWide);
    (blocks ? with_scales.weight.block_scales : with_scales.weight.row_scales) =
        scales.data();
    for (const int64_t tokens : {1, 4}) {
      const auto q = RandomValues(tokens * kHeads * (kNope + kRope), 2);
      std::vector<float> expected(tokens * kHeads * (kWide + kRope));
      auto actual = expected;
      AbsorbQuery(pool, kv_b, q.data(), tokens, expected.data());
      AbsorbQuery(pool, with_scales, q.data(), tokens, actual.data());
      ExpectClose(actual, expected, 1e-6);
      if (blocks) continue;  // only FP8 weights have blocks in a Dot
      const auto attended = RandomValues(tokens * kHeads * kWide, 3);
      std::vector<float> expected_values(tokens * kHeads * kValue);
      auto values = expected_values;
      AbsorbValue(pool, kv_b, attended.data(), tokens, expected_values.data());
      AbsorbValue(pool, with_scales, attended.data(), tokens, values.data());
      ExpectClose(values, expected_values, 1e-6);
    }
  }
}

}  // namespace
}  // namespace invar::cpu
