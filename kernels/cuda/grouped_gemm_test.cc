// Router, plan, grouped products and combine: one MoE layer, piece by piece.
#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cuda/gemm_test_values.h"
#include "kernels/cuda/testing/names.h"
#include "kernels/ops.h"

namespace invar::cuda::testing {
namespace {

struct Case {
  WeightDtype dtype;
  int64_t tokens;
  cpu::RouterOptions router;
  int64_t hidden;
  int64_t inner;
};

struct Routed {
  std::vector<int32_t> ids;
  std::vector<float> weights;
  DeviceBuffer<int32_t> order, counts;
  DeviceBuffer<ExpertWork> work;
  ExpertPlan plan;
};

class ExpertsTest : public GpuTest {
 protected:
  Routed Route(const cpu::RouterOptions& o, const std::vector<float>& weight,
               int64_t hidden, const std::vector<float>& x, int64_t tokens,
               int tile, const std::vector<float>& correction = {},
               WeightDtype dtype = WeightDtype::kFp32) {
    const auto x_data = Upload(x);
    return Route(o, weight, hidden, x_data.data(), tokens, tile, correction,
                 dtype);
  }
  // x: on the device.
  Routed Route(const cpu::RouterOptions& o, const std::vector<float>& weight,
               int64_t hidden, const RouterInput& x, int64_t tokens, int tile,
               const std::vector<float>& correction = {},
               WeightDtype dtype = WeightDtype::kFp32) {
    Routed r;
    const int64_t slots = tokens * o.top_k;
    r.order = Poisoned<int32_t>(slots);
    r.work = Poisoned<ExpertWork>(slots + o.experts);
    r.counts = Upload(std::vector<int32_t>(2, 0));
    r.plan = {r.order.data(), r.work.data(), r.counts.data()};
    const auto ids = Poisoned<int32_t>(slots);
    const auto weights = Poisoned<float>(slots);
    const auto w = Upload(weight);
    const auto halves = Upload(Encode(WeightDtype::kBf16, weight).bytes);
    const void* w_data = w.data();
    if (dtype == WeightDtype::kBf16) w_data = halves.data();
    const auto correction_data = Upload(correction);
    // Twice: the ticket must be as it was.
    for (int i = 0; i < 2; ++i) {
      Router(o, dtype, w_data, hidden, x, tokens, ids.data(), weights.data(),
             r.plan, {.stream = stream().get()}, tile, correction_data.data());
    }
    stream().Synchronize();
    r.ids = ids.Download();
    r.weights = weights.Download();
    return r;
  }
};

TEST_F(ExpertsTest, RouterChoosesAsTheCpuAndPlansEverySlotOnce) {
  cpu::ThreadPool pool(2);
  for (const cpu::RouterOptions& o :
       {cpu::RouterOptions{.experts = 64, .top_k = 6},
        cpu::RouterOptions{.experts = 16, .top_k = 4, .scaling_factor = 2.0f},
        cpu::RouterOptions{.method = cpu::RouterMethod::kGroupLimitedGreedy,
        .experts = 160,
        .top_k = 6,
        .groups = 8,
        .top_groups = 3,
        .scaling_factor = 16.0f},
        cpu::RouterOptions{.scoring = cpu::RouterScoring::kSigmoid,
        .method = cpu::RouterMethod::kNoauxTc,
        .experts = 256,
        .top_k = 8,
        .groups = 8,
        .top_groups = 4,
        .normalise = true,
        .scaling_factor = 2.5f}}) {
    std::vector<float> correction;  // of both signs; V3's method alone has it
    if (o.method == cpu::RouterMethod::kNoauxTc) {
      correction = cpu::RandomValues(o.experts, 3, 0.75);
    }

    for (const int64_t tokens : {1, 5, 33, 300, 700}) {
      constexpr int64_t kHidden = 384;
      // Small whole numbers: logits are exact in any order, and often equal.
      auto w = cpu::RandomValues(o.experts * kHidden, 1, 1.6);
      auto x = cpu::RandomValues(tokens * kHidden, 2, 1.6);
      for (float& v : w) v = std::round(v);
      for (float& v : x) v = std::round(v) * 0.0625f;
      std::vector<int32_t> ids(tokens * o.top_k);
      std::vector<float> weights(tokens * o.top_k);
      cpu::Router(pool, o, cpu::Fp32Weight(w, o.experts, kHidden),
                  correction.empty() ? nullptr : correction.data(), x.data(),
                  tokens, ids.data(), weights.data());
      const Routed routed = Route(o, w, kHidden, x, tokens, 8, correction);
      EXPECT_EQ(routed.ids, ids) << tokens;
      EXPECT_LT(RelativeError(routed.weights, weights), 1e-6);

      std::vector<int32_t> order(ids.size());
      for (size_t i = 0; i < order.size(); ++i) order[i] = i;
      std::stable_sort(order.begin(), order.end(),
                       [&](int a, int b) { return ids[a] < ids[b]; });
      EXPECT_EQ(routed.order.Download(), order);
      const int32_t items = routed.counts.Download()[0];
      const auto work = routed.work.Download();
      int next = 0;
      for (int i = 0; i < items; ++i) {
        EXPECT_EQ(work[i].first, next);
        EXPECT_GT(work[i].count, 0);
        EXPECT_LE(work[i].count, 8);
        for (int j = 0; j < work[i].count; ++j) {
          EXPECT_EQ(ids[order[next + j]], work[i].expert);
        }
        next += work[i].count;
      }
      EXPECT_EQ(next, static_cast<int>(order.size()));
    }
  }
}

// What RmsNorm leaves for the router to norm is, of many tokens, what it would
// have normed itself.
TEST_F(ExpertsTest, RouterNormsAsRmsNormDoes) {
  constexpr int64_t kTokens = 530;
  for (const auto& [experts, hidden] :
       {std::pair{64, 2048}, {160, 416}, {61, 2176}}) {
    ASSERT_TRUE(RouterNorms(kTokens, hidden));
    const cpu::RouterOptions o = {.experts = experts, .top_k = 6};
    const auto w = SpreadValues(experts * hidden, 1, -8, -2);
    const auto rows = Upload(SpreadValues(kTokens * hidden, 2, -9, 6));
    const auto gain = Upload(SpreadValues(hidden, 3, -2, 1));
    const auto normed = Poisoned<float>(kTokens * hidden);
    const auto roots = Poisoned<float>(kTokens);
    RmsNorm({.hidden = rows.data(),
             .hidden_stride = hidden,
             .gain = gain.data(),
             .rows = kTokens,
             .size = hidden,
             .normed = normed.data(),
             .roots = roots.data(),
             .inputs = {}},
            {.stream = stream().get()});
    stream().Synchronize();
    const Routed expected = Route(o, w, hidden, normed.data(), kTokens, 8);
    const Routed routed =
        Route(o, w, hidden, RouterInput(rows.data(), roots.data(), gain.data()),
              kTokens, 8);
    EXPECT_EQ(routed.ids, expected.ids);
    EXPECT_TRUE(SameBits(routed.weights.data(), expected.weights.data(),
                         kTokens * o.top_k));
  }
}

struct RouterShape {
  int64_t experts, hidden;
  WeightDtype dtype;
};
class RouterBitsTest : public ExpertsTest,
                       public ::testing::WithParamInterface<RouterShape> {};

// Few tokens have a cluster each, more share one, many share a block; inputs
// fit shared memory at once or do not.
TEST_P(RouterBitsTest, AreTheSameInAnyCompany) {
  constexpr int64_t kTokens = 700;
  const auto& [experts, hidden, dtype] = GetParam();
  const cpu::RouterOptions o = {.experts = experts, .top_k = 6};
  const auto w = SpreadValues(experts * hidden, 1, -8, -2);
  const auto x = SpreadValues(kTokens * hidden, 2, -2, 2);
  const Routed all = Route(o, w, hidden, x, kTokens, 8, {}, dtype);
  for (const int64_t tokens : {1, 19, 63, 100, 130, 511}) {
    for (const int64_t first : {int64_t{0}, kTokens - tokens}) {
      const std::vector<float> some(x.begin() + first * hidden,
                                    x.begin() + (first + tokens) * hidden);
      const Routed alone = Route(o, w, hidden, some, tokens, 8, {}, dtype);
      EXPECT_TRUE(std::equal(alone.ids.begin(), alone.ids.end(),
                             all.ids.begin() + first * o.top_k));
      EXPECT_TRUE(SameBits(alone.weights.data(),
                           all.weights.data() + first * o.top_k,
                           tokens * o.top_k))
          << experts << " experts, " << tokens << " tokens from " << first;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, RouterBitsTest,
    ::testing::Values(RouterShape{64, 416, WeightDtype::kFp32},
                      RouterShape{160, 416, WeightDtype::kFp32},
                      RouterShape{64, 2048, WeightDtype::kBf16},
                      RouterShape{61, 2176, WeightDtype::kFp32},
                      RouterShape{160, 2176, WeightDtype::kBf16}),
    [](const auto& info) {
      const RouterShape& shape = info.param;
      return absl::StrCat(shape.experts, "x", shape.hidden, "_",
                          Name(shape.dtype));
    });

struct ExpertsShape {
  WeightDtype dtype;
  int64_t hidden, inner;
};
class SlotsTest : public ExpertsTest,
                  public ::testing::WithParamInterface<ExpertsShape> {};

TEST_P(SlotsTest, AreCloseAndKeepTheirBits) {
  const cpu::RouterOptions o = {.experts = 8, .top_k = 3};
  constexpr int64_t kTokens = 500;  // some experts have two wide tiles
  const auto& [dtype, hidden, inner] = GetParam();
  const auto router = SpreadValues(o.experts * hidden, 1, -6, 0);
  const auto x_values = SpreadValues(kTokens * hidden, 2, -4, 1);
  const Codes x = Encode(dtype, x_values);
  const Codes gate_up =
      Encode(dtype, SpreadValues(o.experts * 2 * inner * hidden, 3, -8, 0));
  const Codes down =
      Encode(dtype, SpreadValues(o.experts * hidden * inner, 4, -8, 0));
  const auto x_data = Upload(x.bytes);
  const auto gate_up_data = Upload(gate_up.bytes);
  const auto down_data = Upload(down.bytes);
  const auto gate_scales = Upload(cpu::RandomValues(o.experts, 5));
  const auto up_scales = Upload(cpu::RandomValues(o.experts, 6));
  const auto down_scales = Upload(cpu::RandomValues(o.experts, 7));
  const GroupedWeights w = MakeGroupedWeights(
      dtype, o.experts, hidden, inner, gate_up_data.data(), down_data.data(),
      gate_scales.data(), up_scales.data(), down_scales.data());
  GemmInput input;
  ASSERT_TRUE(MakeGemmInput(dtype, x_data.data(), kTokens, hidden, &input));
  // Beside gate and up; neither may show in the other.
  constexpr int64_t kDenseInner = 208;
  const auto dense_data = Upload(
      Encode(dtype, SpreadValues(2 * kDenseInner * hidden, 8, -8, 0)).bytes);
  GemmWeight dense;
  ASSERT_TRUE(MakeGemmWeight(dtype, dense_data.data(), 2 * kDenseInner, hidden,
                             &dense));
  const auto dense_alone = Poisoned<float>(kTokens * kDenseInner);
  GemmSwiGlu(dense, 2.0f, input, kTokens,
             {dense_alone.data(), WeightDtype::kFp32},
             {.stream = stream().get()});
  stream().Synchronize();
  const auto dense_expected = dense_alone.Download();
  std::vector<__nv_bfloat16> all;
  std::vector<int32_t> ids;
  for (const auto& [tokens, tile] : {std::pair<int64_t, int>{kTokens, 8},
                                     {kTokens, 16},
                                     {kTokens, 32},
                                     {kTokens, 64},
                                     {kTokens, 128},
                                     {kTokens - 7, 128},
                                     {kTokens, 0},
                                     {1, 0},
                                     {9, 0},
                                     {70, 0}}) {
    const int used = tile ? tile : ExpertTile(tokens, o.top_k, o.experts);
    const Routed routed = Route(o, router, hidden, x_values, tokens, used);
    const int64_t slots = tokens * o.top_k;
    const auto act =
        Poisoned<std::byte>(slots * inner * WeightElementBytes(dtype));
    const auto out = Poisoned<__nv_bfloat16>(slots * hidden);
    GemmInput act_input;
    ASSERT_TRUE(MakeGemmInput(dtype, act.data(), slots, inner, &act_input));
    const LaunchOptions launch = {.stream = stream().get(),
                                  .overlap = tile == 0,
                                  .early = tile == 0,
                                  .gate = tile == 0};
    const bool gather = used >= 64 && tokens != 70;
    const int64_t row_bytes = hidden * WeightElementBytes(dtype);
    const auto in_order = Poisoned<std::byte>(slots * row_bytes);
    GemmInput gathered;
    ASSERT_TRUE(
        MakeGemmInput(dtype, in_order.data(), slots, hidden, &gathered));
    if (gather) {
      GatherInputs({x_data.data(), row_bytes}, routed.plan, tokens, o.top_k,
                   {in_order.data(), row_bytes}, launch);
    }
    const auto dense_out = Poisoned<float>(tokens * kDenseInner);
    const SwiGluTask beside = {
        &dense, 2.0f, &input, {dense_out.data(), WeightDtype::kFp32}};
    ExpertsGateUp(w, gather ? gathered : input, routed.plan, tokens, o.top_k,
                  {act.data(), dtype, 0.05f}, launch, tile, gather,
                  tile == 8 ? nullptr : &beside);
    ExpertsDown(w, act_input, routed.plan, tokens, o.top_k, out.data(), launch,
                tile);
    stream().Synchronize();
    const auto mine = out.Download();
    if (all.empty()) {
      all = mine;
      ids = routed.ids;
    }
    EXPECT_TRUE(SameBits(all.data(), mine.data(), mine.size()))
        << "tokens " << tokens << " tile " << tile;
    if (tile == 8) continue;
    EXPECT_TRUE(SameBits(dense_out.Download().data(), dense_expected.data(),
                         tokens * kDenseInner))
        << "beside " << tokens << " tokens, tile " << tile;
  }
  // A few slots in float64.
  const auto gs = gate_scales.Download();
  const auto us = up_scales.Download();
  const auto ds = down_scales.Download();
  std::vector<float> actual;
  std::vector<double> expected;
  for (int64_t slot = 0; slot < kTokens * o.top_k; slot += 61) {
    const int64_t e = ids[slot];
    const double* token = &x.values[slot / o.top_k * hidden];
    std::vector<float> inner_values;
    for (int64_t r = 0; r < inner; ++r) {
      double g = 0.0;
      double u = 0.0;
      const double* g_row = &gate_up.values[(e * 2 * inner + r) * hidden];
      for (int64_t k = 0; k < hidden; ++k) {
        g += g_row[k] * token[k];
        u += g_row[inner * hidden + k] * token[k];
      }
      g *= gs[e];
      const double value = g / (1.0 + std::exp(-g)) * u * us[e];
      inner_values.push_back(static_cast<float>(
          dtype == WeightDtype::kFp8E4m3 ? value / 0.05f : value));
    }
    const Codes codes = Encode(dtype, inner_values);
    for (int64_t r = 0; r < hidden; ++r) {
      double sum = 0.0;
      for (int64_t k = 0; k < inner; ++k) {
        sum += down.values[(e * hidden + r) * inner + k] * codes.values[k];
      }
      expected.push_back(sum * ds[e]);
      actual.push_back(__bfloat162float(all[slot * hidden + r]));
    }
  }
  // Values near a rounding boundary land on the other side of it.
  EXPECT_LT(RelativeError(actual, expected),
            (dtype == WeightDtype::kFp8E4m3 ? 8e-3 : 5e-4) + kBf16Tolerance);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, SlotsTest,
    ::testing::Values(ExpertsShape{WeightDtype::kBf16, 384, 96},
                      ExpertsShape{WeightDtype::kBf16, 2048, 1408},
                      ExpertsShape{WeightDtype::kFp8E4m3, 384, 96},
                      ExpertsShape{WeightDtype::kFp8E4m3, 2048, 1408}),
    [](const auto& info) {
      const ExpertsShape& shape = info.param;
      return absl::StrCat(Name(shape.dtype), "_", shape.hidden, "x",
                          shape.inner);
    });

TEST_F(ExpertsTest, GemmSwiGluIsOneExpertForAllTokens) {
  constexpr int64_t kTokens = 330;
  constexpr int64_t kHidden = 384;
  constexpr int64_t kInner = 208;
  for (const WeightDtype dtype : {WeightDtype::kBf16, WeightDtype::kFp8E4m3}) {
    const Codes w = Encode(dtype, SpreadValues(2 * kInner * kHidden, 1, -8, 0));
    const Codes x = Encode(dtype, SpreadValues(kTokens * kHidden, 2, -4, 1));
    const auto w_data = Upload(w.bytes);
    const auto x_data = Upload(x.bytes);
    GemmWeight weight;
    GemmInput input;
    ASSERT_TRUE(
        MakeGemmWeight(dtype, w_data.data(), 2 * kInner, kHidden, &weight));
    ASSERT_TRUE(MakeGemmInput(dtype, x_data.data(), kTokens, kHidden, &input));
    weight.scale = 0.5f;
    std::vector<float> first;
    for (const int tile : {8, 16, 32, 64, 128}) {
      const auto out = Poisoned<float>(kTokens * kInner);
      GemmSwiGlu(weight, 2.0f, input, kTokens, {out.data(), WeightDtype::kFp32},
                 {.stream = stream().get()}, tile);
      stream().Synchronize();
      const auto mine = out.Download();
      if (first.empty()) first = mine;
      EXPECT_TRUE(SameBits(first.data(), mine.data(), mine.size())) << tile;
    }
    std::vector<double> expected;
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t r = 0; r < kInner; ++r) {
        double g = 0.0;
        double u = 0.0;
        for (int64_t k = 0; k < kHidden; ++k) {
          g += w.values[r * kHidden + k] * x.values[t * kHidden + k];
          u += w.values[(kInner + r) * kHidden + k] * x.values[t * kHidden + k];
        }
        g *= 0.5;
        expected.push_back(g / (1.0 + std::exp(-g)) * u * 2.0);
      }
    }
    EXPECT_LT(RelativeError(first, expected), 3 * ProductTolerance(dtype));
  }
}

}  // namespace
}  // namespace invar::cuda::testing
