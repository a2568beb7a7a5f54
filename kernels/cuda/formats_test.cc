// The formats of FP8 checkpoints, whole: inputs quantised and multiplied here
// and by the CPU backend. Tiles and numbers of tokens move no bit.
#include <algorithm>
#include <string>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cuda/gemm_test_values.h"
#include "kernels/cuda/support.h"
#include "kernels/ops.h"

namespace invar::cuda::testing {
namespace {

enum class Format { kStatic, kToken, kTokenAndRows, kBlock };
constexpr Format kFormats[] = {Format::kStatic, Format::kToken,
                               Format::kTokenAndRows, Format::kBlock};
constexpr float kInputScale = 0.01f;

const char* Name(Format format) {
  static constexpr const char* kNames[] = {"static", "token", "token_and_rows",
                                           "block"};
  return kNames[static_cast<int>(format)];
}

// A matrix of a format, as the CPU has it.
struct Matrix {
  Codes codes;
  std::vector<float> scales;
  Weight weight;

  Matrix(Format format, int64_t rows, int64_t columns, uint64_t seed)
      : codes(Encode(WeightDtype::kFp8E4m3,
                     SpreadValues(rows * columns, seed, -6, 8))) {
    weight = {.dtype = WeightDtype::kFp8E4m3,
              .data = codes.bytes.data(),
              .rows = rows,
              .columns = columns,
              .scale = 0.003f * static_cast<float>(1 + seed % 5)};
    if (format == Format::kStatic) {
      weight.input_scale = kInputScale;
      return;
    }
    weight.dynamic_inputs = format == Format::kBlock ? DynamicInputs::kGroup
                                                     : DynamicInputs::kToken;
    if (format == Format::kToken) return;
    const int64_t count = format == Format::kBlock
                              ? ScaleBlocks(rows) * ScaleBlocks(columns)
                              : rows;
    scales = SpreadValues(count, seed + 1, -9, -4);
    for (float& scale : scales) scale = std::abs(scale);
    (format == Format::kBlock ? weight.block_scales : weight.row_scales) =
        scales.data();
  }
};

// Inputs on the device with what their format keeps beside them.
struct Inputs {
  DeviceBuffer<uint8_t> codes;
  DeviceBuffer<float> scales;
  GemmInput input;
  InputSink sink;

  Inputs(Format format, int64_t rows, int64_t columns)
      : codes(Poisoned<uint8_t>(rows * columns)),
        scales(Poisoned<float>(rows * ScaleBlocks(columns))) {
    EXPECT_TRUE(MakeGemmInput(WeightDtype::kFp8E4m3, codes.data(), rows,
                              columns, &input));
    sink = {.data = codes.data(), .dtype = WeightDtype::kFp8E4m3};
    if (format == Format::kStatic) {
      sink.scale = kInputScale;
      return;
    }
    sink.dynamic = format == Format::kBlock ? DynamicInputs::kGroup
                                            : DynamicInputs::kToken;
    sink.scales = scales.data();
    input.scales = scales.data();
  }
};

struct Shape {
  int64_t rows, columns;
};

class FormatsTest : public GpuTestWithParam<std::tuple<Format, Shape>> {
 protected:
  Format format() const { return std::get<Format>(GetParam()); }
  Shape shape() const { return std::get<Shape>(GetParam()); }

  cpu::ThreadPool pool_{2};
};

std::string FormatAndShape(
    const ::testing::TestParamInfo<std::tuple<Format, Shape>>& info) {
  const auto& [format, shape] = info.param;
  return absl::StrCat(Name(format), "_", shape.rows, "x", shape.columns);
}

class FormatProductsTest : public FormatsTest {};

TEST_P(FormatProductsTest, AreTheCpusAndKeepTheirBits) {
  constexpr int64_t kTokens = 150;
  const auto [rows, columns] = shape();
  const Matrix w(format(), rows, columns, 1);
  ASSERT_TRUE(SupportsLinear(w.weight, "w").ok());
  auto x = SpreadValues(kTokens * columns, 2, -8, 3);
  std::fill_n(x.begin(), columns, 0.0f);  // a row that has no largest value
  std::vector<float> expected(kTokens * rows);
  cpu::Linear(pool_, w.weight, x.data(), kTokens, expected.data());

  const auto data = Upload(w.codes.bytes);
  const auto scales = Upload(w.scales);
  GemmWeight weight;
  ASSERT_TRUE(MakeGemmWeight(WeightDtype::kFp8E4m3, data.data(), rows, columns,
                             &weight));
  weight.scale = w.weight.scale;
  if (format() == Format::kStatic) weight.scale *= kInputScale;
  if (format() == Format::kTokenAndRows) {
    weight.scale = 1.0f;
    weight.row_scales = scales.data();
  }
  if (format() == Format::kBlock) weight.block_scales = scales.data();
  const auto device_x = Upload(x);
  const Inputs inputs(format(), kTokens, columns);
  std::vector<float> all;
  const auto run = [&](int64_t tokens, GemmTile tile, bool overlap) {
    const LaunchOptions launch = {stream().get(), overlap};
    const auto out = Poisoned<float>(tokens * rows);
    QuantizeInputs(device_x.data(), tokens, columns, inputs.sink, launch);
    Gemm(weight, RowParallelLeaf(columns), inputs.input, tokens,
         GemmOutput::kFp32, out.data(), launch, tile);
    stream().Synchronize();
    const auto mine = out.Download();
    if (all.empty()) all = mine;
    EXPECT_TRUE(SameBits(all.data(), mine.data(), mine.size()))
        << tokens << " tokens, tile " << tile.tokens << " run " << tile.run;
  };
  for (const GemmTile tile :
       {GemmTile{8}, GemmTile{16}, GemmTile{32}, GemmTile{64}, GemmTile{128},
        GemmTile{32, 2}, GemmTile{64, 2}, GemmTile{64, 4}, GemmTile{64, 8}}) {
    run(kTokens, tile, false);
  }
  for (const int64_t tokens : {1, 9, 33, 65}) run(tokens, {}, true);
  EXPECT_LT(RelativeError(all, expected),
            ProductTolerance(WeightDtype::kFp8E4m3))
      << rows << " x " << columns;
}

// The embedded model's, wide and narrow ones, and odd ends of both.
INSTANTIATE_TEST_SUITE_P(
    Formats, FormatProductsTest,
    ::testing::Combine(::testing::ValuesIn(kFormats),
                       ::testing::Values(Shape{768, 384}, Shape{576, 384},
                                         Shape{384, 512}, Shape{384, 96},
                                         Shape{320, 2048}, Shape{129, 352},
                                         Shape{200, 1104})),
    FormatAndShape);

class FormatExpertsTest : public FormatsTest {};

TEST_P(FormatExpertsTest, AreTheCpusAndKeepTheirBits) {
  constexpr int64_t kTokens = 140;
  const cpu::RouterOptions o = {.experts = 16, .top_k = 4};
  const auto [hidden, inner] = shape();
  std::vector<Matrix> gates, ups, downs;
  std::vector<std::byte> gate_up_codes, down_codes;
  std::vector<float> gate_up_scales, down_scales;
  std::vector<float> gate_scale, up_scale, down_scale;
  const float input_scale = format() == Format::kStatic ? kInputScale : 1.0f;
  const bool has_scale =
      format() == Format::kStatic || format() == Format::kToken;
  const auto append = [](auto& to, const auto& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  const auto scale_of = [&](const Matrix& m) {
    return has_scale ? m.weight.scale * input_scale : 1.0f;
  };
  for (int64_t e = 0; e < o.experts; ++e) {
    gates.emplace_back(format(), inner, hidden, 10 * e);
    ups.emplace_back(format(), inner, hidden, 10 * e + 3);
    downs.emplace_back(format(), hidden, inner, 10 * e + 6);
    append(gate_up_codes, gates[e].codes.bytes);
    append(gate_up_codes, ups[e].codes.bytes);
    append(gate_up_scales, gates[e].scales);
    append(gate_up_scales, ups[e].scales);
    append(down_codes, downs[e].codes.bytes);
    append(down_scales, downs[e].scales);
    gate_scale.push_back(scale_of(gates[e]));
    up_scale.push_back(scale_of(ups[e]));
    down_scale.push_back(scale_of(downs[e]));
  }
  std::vector<cpu::Expert> experts;
  for (int64_t e = 0; e < o.experts; ++e) {
    experts.push_back({gates[e].weight, ups[e].weight, downs[e].weight});
  }
  const auto data = Upload(gate_up_codes);
  const auto down_data = Upload(down_codes);
  const auto d_gate_up = Upload(gate_up_scales);
  const auto d_down = Upload(down_scales);
  const auto d_gate_scale = Upload(gate_scale);
  const auto d_up_scale = Upload(up_scale);
  const auto d_down_scale = Upload(down_scale);
  GroupedWeights w =
      MakeGroupedWeights(WeightDtype::kFp8E4m3, o.experts, hidden, inner,
                         data.data(), down_data.data(), d_gate_scale.data(),
                         d_up_scale.data(), d_down_scale.data());
  if (format() == Format::kTokenAndRows) {
    w.gate_up.row_scales = d_gate_up.data();
    w.down.row_scales = d_down.data();
  } else if (format() == Format::kBlock) {
    w.gate_up.block_scales = d_gate_up.data();
    w.down.block_scales = d_down.data();
  }

  const auto router = SpreadValues(o.experts * hidden, 1, -6, 0);
  const auto x = SpreadValues(kTokens * hidden, 2, -8, 1);
  const auto d_router = Upload(router);
  const auto d_x = Upload(x);
  const Inputs inputs(format(), kTokens, hidden);
  std::vector<__nv_bfloat16> all;
  std::vector<int32_t> all_ids;
  struct Run {
    int64_t tokens;
    int tile;
    bool gathered;
  };
  for (const auto& [tokens, tile, gathered] :
       {Run{kTokens, 8, false}, Run{kTokens, 16, true}, Run{kTokens, 32, false},
        Run{kTokens, 64, false}, Run{kTokens, 128, false},
        Run{kTokens, 64, true}, Run{kTokens, 128, true}, Run{1, 0, false},
        Run{9, 0, true}, Run{70, 0, false}}) {
    const int64_t slots = tokens * o.top_k;
    const auto order = Poisoned<int32_t>(slots);
    const auto work = Poisoned<ExpertWork>(slots + o.experts);
    const auto counts = Upload(std::vector<int32_t>(2, 0));
    const auto ids = Poisoned<int32_t>(slots);
    const auto weights = Poisoned<float>(slots);
    const auto activated = Poisoned<float>(slots * inner);
    const auto out = Poisoned<__nv_bfloat16>(slots * hidden);
    const Inputs down_inputs(format(), slots, inner);
    const ExpertPlan plan = {order.data(), work.data(), counts.data()};
    const LaunchOptions launch = {stream().get(), tile == 0};
    Router(o, WeightDtype::kFp32, d_router.data(), hidden, d_x.data(), tokens,
           ids.data(), weights.data(), plan, launch, tile);
    QuantizeInputs(d_x.data(), tokens, hidden, inputs.sink, launch);
    const Inputs in_order(format(), slots, hidden);
    if (gathered) {
      const int64_t row_scales = format() == Format::kStatic ? 0
                                 : format() == Format::kBlock
                                     ? ScaleBlocks(hidden)
                                     : 1;
      GatherInputs(
          {inputs.codes.data(), hidden, inputs.scales.data(), row_scales}, plan,
          tokens, o.top_k,
          {in_order.codes.data(), hidden, in_order.scales.data(), row_scales},
          launch);
    }
    ExpertsGateUp(w, gathered ? in_order.input : inputs.input, plan, tokens,
                  o.top_k,
                  {.data = activated.data(), .dtype = WeightDtype::kFp32},
                  launch, tile, gathered);
    QuantizeInputs(activated.data(), slots, inner, down_inputs.sink, launch);
    ExpertsDown(w, down_inputs.input, plan, tokens, o.top_k, out.data(), launch,
                tile);
    stream().Synchronize();
    const auto mine = out.Download();
    if (all.empty()) {
      all = mine;
      all_ids = ids.Download();
    }
    EXPECT_TRUE(SameBits(all.data(), mine.data(), mine.size()))
        << tokens << " tokens, tile " << tile << " gathered " << gathered;
  }
  std::vector<float> expected(kTokens * o.top_k * hidden);
  cpu::Experts(pool_, experts, x.data(), kTokens, all_ids.data(), o.top_k,
               expected.data());
  // Values near a rounding boundary land on the other side of it.
  EXPECT_LT(RelativeError(Bf16Values(all), expected), 8e-3 + kBf16Tolerance)
      << hidden << " x " << inner;
}

// Embedded model: 16 experts of 384 x 96, four a token; then whole and broken
// blocks of scales.
INSTANTIATE_TEST_SUITE_P(Formats, FormatExpertsTest,
                         ::testing::Combine(::testing::ValuesIn(kFormats),
                                            ::testing::Values(Shape{384, 96},
                                                              Shape{256, 320})),
                         FormatAndShape);

class FormatSwiGluTest : public FormatsTest {};

// A dense MLP's gate and up, whose scales differ as two matrices' do.
TEST_P(FormatSwiGluTest, IsTheCpusAndKeepsItsBits) {
  constexpr int64_t kTokens = 130;
  const auto [inner, hidden] = shape();
  const Matrix gate(format(), inner, hidden, 4);
  const Matrix up(format(), inner, hidden, 7);
  const auto x = SpreadValues(kTokens * hidden, 2, -8, -2);
  std::vector<float> gates(kTokens * inner), ups(kTokens * inner);
  std::vector<float> expected(kTokens * inner);
  cpu::Linear(pool_, gate.weight, x.data(), kTokens, gates.data());
  cpu::Linear(pool_, up.weight, x.data(), kTokens, ups.data());
  cpu::SiluMul(pool_, gates.data(), ups.data(), kTokens * inner,
               expected.data());

  auto codes = gate.codes.bytes;
  codes.insert(codes.end(), up.codes.bytes.begin(), up.codes.bytes.end());
  auto both = gate.scales;
  both.insert(both.end(), up.scales.begin(), up.scales.end());
  const auto data = Upload(codes);
  const auto scales = Upload(both);
  GemmWeight weight;
  ASSERT_TRUE(MakeGemmWeight(WeightDtype::kFp8E4m3, data.data(), 2 * inner,
                             hidden, &weight));
  float up_scale = 1.0f;
  if (format() == Format::kTokenAndRows) {
    weight.row_scales = scales.data();
  } else if (format() == Format::kBlock) {
    weight.block_scales = scales.data();
  } else {
    const float s = format() == Format::kStatic ? kInputScale : 1.0f;
    weight.scale = gate.weight.scale * s;
    up_scale = up.weight.scale * s;
  }
  const auto d_x = Upload(x);
  const Inputs inputs(format(), kTokens, hidden);
  std::vector<float> all;
  for (const int tile : {8, 16, 32, 64, 128}) {
    const LaunchOptions launch = {stream().get(), tile == 8};
    const auto out = Poisoned<float>(kTokens * inner);
    QuantizeInputs(d_x.data(), kTokens, hidden, inputs.sink, launch);
    GemmSwiGlu(weight, up_scale, inputs.input, kTokens,
               {.data = out.data(), .dtype = WeightDtype::kFp32}, launch, tile);
    stream().Synchronize();
    const auto mine = out.Download();
    if (all.empty()) all = mine;
    EXPECT_TRUE(SameBits(all.data(), mine.data(), mine.size())) << tile;
  }
  EXPECT_LT(RelativeError(all, expected), 5e-3) << inner;
}

INSTANTIATE_TEST_SUITE_P(
    Formats, FormatSwiGluTest,
    ::testing::Combine(::testing::ValuesIn(kFormats),
                       ::testing::Values(Shape{192, 384}, Shape{1024, 384})),
    FormatAndShape);

class QuantizeInputsTest : public GpuTest {};

// Scales and codes are the CPU's to the bit, alone and inside the norm.
TEST_F(QuantizeInputsTest, ScalesAreOfTheRowOrTheGroupAlone) {
  constexpr int64_t kRows = 5;
  for (const int64_t columns : {16, 96, 384, 1104, 5120}) {
    const auto x = SpreadValues(kRows * columns, 1, -10, 6);
    const auto d_x = Upload(x);
    for (const DynamicInputs dynamic :
         {DynamicInputs::kToken, DynamicInputs::kGroup}) {
      const bool token = dynamic == DynamicInputs::kToken;
      const int64_t run = token ? columns : kScaleBlock;
      const int64_t groups = (columns + run - 1) / run;
      const auto codes = Poisoned<uint8_t>(kRows * columns);
      const auto scales = Poisoned<float>(kRows * groups);
      QuantizeInputs(
          d_x.data(), kRows, columns,
          {codes.data(), WeightDtype::kFp8E4m3, 1.0f, dynamic, scales.data()},
          {.stream = stream().get()});
      stream().Synchronize();
      const auto actual = scales.Download();
      std::vector<float> divided;
      for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t g = 0; g < groups; ++g) {
          const float* begin = &x[r * columns + g * run];
          const int64_t count = std::min(run, columns - g * run);
          float largest = 0.0f;
          for (int64_t k = 0; k < count; ++k) {
            largest = std::max(largest, std::abs(begin[k]));
          }
          const float scale = largest / 448.0f;
          ASSERT_EQ(actual[r * groups + g], scale);
          for (int64_t k = 0; k < count; ++k) {
            divided.push_back(begin[k] / scale);
          }
        }
      }
      const auto want = Encode(WeightDtype::kFp8E4m3, divided).bytes;
      EXPECT_TRUE(SameBits(reinterpret_cast<const uint8_t*>(want.data()),
                           codes.Download().data(), kRows * columns))
          << columns;
    }
  }
}

// No scale is so small that it has no inverse: zero stays zero.
TEST_F(QuantizeInputsTest, ScalesHaveInverses) {
  constexpr int64_t kColumns = 16;
  std::vector<float> x(2 * kColumns, 0.0f);
  x[3] = 1e-40f;
  x[5] = -0x1p-120f;
  x[kColumns + 1] = 0x1p-96f;  // sixteen times the smallest scale
  const auto d_x = Upload(x);
  for (const DynamicInputs dynamic :
       {DynamicInputs::kToken, DynamicInputs::kGroup}) {
    const auto codes = Poisoned<uint8_t>(x.size());
    const auto scales = Poisoned<float>(2);
    QuantizeInputs(
        d_x.data(), 2, kColumns,
        {codes.data(), WeightDtype::kFp8E4m3, 1.0f, dynamic, scales.data()},
        {.stream = stream().get()});
    stream().Synchronize();
    EXPECT_EQ(scales.Download(), std::vector<float>(2, 0x1p-100f));
    std::vector<float> divided = x;
    for (float& v : divided) v *= 0x1p100f;
    const auto want = Encode(WeightDtype::kFp8E4m3, divided).bytes;
    EXPECT_TRUE(SameBits(reinterpret_cast<const uint8_t*>(want.data()),
                         codes.Download().data(), x.size()));
  }
}

// Needs no GPU.
TEST(SupportTest, RefusesByName) {
  EXPECT_TRUE(SupportsAttention(512, 64, 128, 128).ok());
  EXPECT_EQ(SupportsAttention(512, 64, 64, 128).message(),
            "on a GPU, qk_nope_head_dim is 64; only 128 is taken: use --device "
            "cpu");
  Weight w = {.dtype = WeightDtype::kFp8E4m3, .rows = 8, .columns = 40};
  EXPECT_FALSE(SupportsLinear(w, "q_proj").ok());
  w.columns = 48;
  EXPECT_FALSE(SupportsLinear(w, "q_proj").ok());
  w.input_scale = 1.0f;
  EXPECT_TRUE(SupportsLinear(w, "q_proj").ok());
  const float scales[] = {1.0f};
  w.block_scales = scales;
  EXPECT_FALSE(SupportsLinear(w, "q_proj").ok());
  w.input_scale = 0.0f;
  w.dynamic_inputs = DynamicInputs::kGroup;
  EXPECT_TRUE(SupportsLinear(w, "q_proj").ok());
  w.block_offset = 96;
  EXPECT_FALSE(SupportsLinear(w, "q_proj").ok());
}

}  // namespace
}  // namespace invar::cuda::testing
