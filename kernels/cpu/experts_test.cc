#include <gtest/gtest.h>

#include "kernels/cpu/test_values.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

constexpr int64_t kHidden = 32;
constexpr int64_t kInner = 48;
constexpr int64_t kExperts = 4;
constexpr int64_t kTopK = 2;

struct Layer {
  Layer() {
    for (int64_t e = 0; e < kExperts; ++e) {
      gate.push_back(RandomValues(kInner * kHidden, 3 * e));
      up.push_back(RandomValues(kInner * kHidden, 3 * e + 1));
      down.push_back(RandomValues(kHidden * kInner, 3 * e + 2));
    }
    for (int64_t e = 0; e < kExperts; ++e) {
      experts.push_back({Fp32Weight(gate[e], kInner, kHidden),
                         Fp32Weight(up[e], kInner, kHidden),
                         Fp32Weight(down[e], kHidden, kInner)});
    }
  }
  std::vector<std::vector<float>> gate, up, down;
  std::vector<Expert> experts;
};

std::vector<double> Reference(const Layer& layer, const float* x, int64_t e) {
  std::vector<double> inner(kInner);
  for (int64_t i = 0; i < kInner; ++i) {
    double gate = 0.0;
    double up = 0.0;
    for (int64_t k = 0; k < kHidden; ++k) {
      gate += static_cast<double>(layer.gate[e][i * kHidden + k]) * x[k];
      up += static_cast<double>(layer.up[e][i * kHidden + k]) * x[k];
    }
    inner[i] = gate / (1.0 + std::exp(-gate)) * up;
  }
  std::vector<double> out(kHidden);
  for (int64_t k = 0; k < kHidden; ++k) {
    for (int64_t i = 0; i < kInner; ++i) {
      out[k] += layer.down[e][k * kInner + i] * inner[i];
    }
  }
  return out;
}

TEST(ExpertsTest, EachSlotIsItsExpertsOutput) {
  ThreadPool pool(2);
  const Layer layer;
  constexpr int64_t kTokens = 9;
  const auto x = RandomValues(kTokens * kHidden, 50);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < kTokens; ++t) {  // expert 3 is never chosen
    ids.push_back(static_cast<int32_t>(t % 3));
    ids.push_back(static_cast<int32_t>((t + 1) % 3));
  }
  std::vector<float> slots(kTokens * kTopK * kHidden);
  Experts(pool, layer.experts, x.data(), kTokens, ids.data(), kTopK,
          slots.data());
  std::vector<double> expected;
  for (int64_t slot = 0; slot < kTokens * kTopK; ++slot) {
    const auto out = Reference(layer, &x[slot / kTopK * kHidden], ids[slot]);
    expected.insert(expected.end(), out.begin(), out.end());
  }
  ExpectClose(slots, expected, 2e-6);
  // A token alone has the bits it had among others.
  std::vector<float> alone(kTopK * kHidden);
  Experts(pool, layer.experts, &x[4 * kHidden], 1, &ids[4 * kTopK], kTopK,
          alone.data());
  EXPECT_EQ(std::memcmp(alone.data(), &slots[4 * kTopK * kHidden],
                        alone.size() * sizeof(float)),
            0);
}

TEST(CombineTest, AddsSharedFirstThenSlotsByRank) {
  ThreadPool pool(1);
  // Magnitudes at which any other order gives another sum.
  const std::vector<float> shared(16, 1e8f);
  std::vector<float> slots(2 * 16, 1.0f);
  std::fill(slots.begin(), slots.begin() + 16, -1e8f);
  const std::vector<float> weights = {1.0f, 0.25f};
  std::vector<float> hidden(16, 0.5f);
  Combine(pool, shared.data(), slots.data(), weights.data(), 1, 2, 16,
          hidden.data());
  EXPECT_EQ(hidden, std::vector<float>(16, 0.75f));
}

TEST(SiluMulTest, MatchesDoublePrecision) {
  ThreadPool pool(1);
  const auto gate = RandomValues(64, 1, 20.0);
  const auto up = RandomValues(64, 2);
  std::vector<float> out(64);
  SiluMul(pool, gate.data(), up.data(), 64, out.data());
  std::vector<double> expected;
  for (int i = 0; i < 64; ++i) {
    const double g = gate[i];
    expected.push_back(g / (1.0 + std::exp(-g)) * up[i]);
  }
  ExpectClose(out, expected, 1e-6);
}

TEST(AddIntoTest, Adds) {
  ThreadPool pool(1);
  std::vector<float> hidden(32, 1.0f);
  const std::vector<float> y(32, 0.5f);
  AddInto(pool, y.data(), 32, hidden.data());
  EXPECT_EQ(hidden, std::vector<float>(32, 1.5f));
}

TEST(EmbeddingTest, CopiesTheRowsOfTheIds) {
  const auto table = RandomValues(5 * 16, 1);
  const std::vector<int32_t> ids = {4, 0, 4};
  std::vector<float> out(3 * 16);
  Embedding(Fp32Weight(table, 5, 16), ids, out.data());
  for (int t = 0; t < 3; ++t) {
    for (int k = 0; k < 16; ++k) {
      EXPECT_EQ(out[t * 16 + k], table[ids[t] * 16 + k]);
    }
  }
}

}  // namespace
}  // namespace invar::cpu
