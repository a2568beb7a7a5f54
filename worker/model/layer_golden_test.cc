// Layer by layer against the reference, each FP8 format of each architecture:
// tests/goldens/make_format_goldens.py wrote what it saw on the way.
//
// Every operation is fed what the reference fed to its own, so that nothing
// adds up from one to the next:
//   a Linear     the reference's codes and scales; outputs within 1e-5
//   a quantiser  the reference's values before they are quantised, and our own,
//                of an operation that was fed the reference's; codes of both
//                within one step, and at most 1e-3 of them another
//   what is between them (norms, rotation, attention with kv_b in its absorbed
//   form, silu, router)  outputs within 1e-5
// An error is the largest of a row, over the root mean square of the row.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/dot.h"
#include "kernels/ops.h"
#include "worker/kv/kv_cache.h"
#include "worker/model/testing/golden.h"
#include "worker/model/weights.h"

namespace invar {
namespace {

using Floats = std::vector<float>;
using Codes = std::vector<uint8_t>;

constexpr double kErrorMost = 1e-5;
constexpr double kOtherCodesMost = 1e-3;
// Of the cache that the reference attends to.
constexpr KvDtype kCacheDtype = KvDtype::kFp8E4m3;

// What an e4m3 or e5m2 code without its sign stands for.
template <int kMantissa>
double Magnitude(int code) {
  constexpr int kBias = kMantissa == 3 ? 7 : 15;
  const int exponent = code >> kMantissa;
  const int mantissa = code & ((1 << kMantissa) - 1);
  return exponent == 0 ? std::ldexp(mantissa, 1 - kBias - kMantissa)
                       : std::ldexp((1 << kMantissa) + mantissa,
                                    exponent - kBias - kMantissa);
}

double E4m3Value(uint8_t code) {
  const double magnitude = Magnitude<3>(code & 0x7f);
  return code < 0x80 ? magnitude : -magnitude;
}

// The code of a value that is one of e4m3's but for the error of a product.
uint8_t E4m3Of(double value) {
  int code = 0;
  while (code < 0x7e && std::abs(Magnitude<3>(code + 1) - std::abs(value)) <=
                            std::abs(Magnitude<3>(code) - std::abs(value))) {
    ++code;
  }
  EXPECT_NEAR(std::abs(value), Magnitude<3>(code), 1e-6 * Magnitude<3>(code))
      << "is no e4m3 value";
  return static_cast<uint8_t>(code | (std::signbit(value) ? 0x80 : 0));
}

// Its place among all codes, in the order of their values.
int Place(uint8_t code) {
  const int magnitude = code & 0x7f;
  return code < 0x80 ? magnitude : -magnitude;
}

struct CodeCount {
  int64_t all = 0;
  int64_t other = 0;  // than the reference's

  void Add(const std::string& name, const Codes& own, const Codes& expected) {
    ASSERT_EQ(own.size(), expected.size()) << name;
    for (size_t i = 0; i < own.size(); ++i) {
      const int steps = std::abs(Place(own[i]) - Place(expected[i]));
      ASSERT_LE(steps, 1) << name << ", element " << i;
      other += steps;
    }
    all += static_cast<int64_t>(own.size());
  }
};

class LayerGoldenTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::string folder = "tests/goldens/" + GetParam();
    auto golden = SafetensorsFile::Open(folder + "/layers.safetensors");
    ASSERT_TRUE(golden.ok()) << golden.status();
    golden_ = *std::move(golden);
    auto checked = LoadChecked(folder);
    ASSERT_TRUE(checked.ok()) << checked.status();
    model_.emplace(*std::move(checked));
    weights_ = ReadWeights(model_->config, model_->checkpoint, kCacheDtype);
    const ModelConfig& c = model_->config;
    rope_ =
        cpu::MakeRopeTable(c.qk_rope_head_dim, c.rope_theta, c.rope_scaling);
    tokens_ = golden_->tensors().at(Attention(0) + ".hidden").shape[0];
    std::vector<int64_t> positions(tokens_);
    std::iota(positions.begin(), positions.end(), 0);
    for (const int64_t position : positions) {
      places_.push_back({&kBlock, position});
    }
    cosines_.resize(tokens_ * c.qk_rope_head_dim / 2);
    sines_.resize(cosines_.size());
    cpu::RopeAngles(rope_, positions, cosines_.data(), sines_.data());
  }

  static std::string Attention(int64_t layer) {
    return absl::StrCat("model.layers.", layer, ".self_attn");
  }
  static std::string FeedForward(int64_t layer) {
    return absl::StrCat("model.layers.", layer, ".mlp");
  }

  Floats Seen(const std::string& name) const {
    return testing::Values<float>(*golden_, name);
  }
  Codes SeenCodes(const std::string& name) const {
    return testing::Values<uint8_t>(*golden_, name);
  }

  // Rows of `size` values.
  void ExpectClose(const std::string& name, std::span<const float> actual,
                   std::span<const float> expected, int64_t size) {
    ASSERT_EQ(actual.size(), expected.size()) << name;
    for (size_t begin = 0; begin < expected.size(); begin += size) {
      double squares = 0.0;
      double largest = 0.0;
      for (size_t i = begin; i < begin + size; ++i) {
        squares += std::pow(static_cast<double>(expected[i]), 2);
        largest = std::max(
            largest, std::abs(static_cast<double>(actual[i]) - expected[i]));
      }
      const double error =
          largest / std::sqrt(squares / static_cast<double>(size));
      EXPECT_LE(error, kErrorMost) << name << ", row " << begin / size;
      largest_error_ = std::max(largest_error_, error);
    }
  }

  // The scale of row t's element k in a module's input.
  static float InputScale(const Weight& weight, const Floats& scales, int64_t t,
                          int64_t k) {
    switch (weight.dynamic_inputs) {
      case DynamicInputs::kNone:
        return scales[0];
      case DynamicInputs::kToken:
        return scales[t];
      case DynamicInputs::kGroup:
        return scales[t * ScaleBlocks(weight.columns) + k / kScaleBlock];
    }
    return 0.0f;
  }

  Codes OwnCodes(const std::string& module, const Weight& weight,
                 const Floats& x);
  void CheckCodes(const std::string& module, const Weight& weight,
                  const Floats& x, CodeCount& count) {
    count.Add(module, OwnCodes(module, weight, x),
              SeenCodes(module + ".codes"));
  }
  void CheckProduct(const std::string& module, const Weight& weight,
                    decltype(cpu::Linear)* product);
  // A product, and the codes of the reference's input and of our own.
  void CheckLinear(const std::string& module, const Weight& weight,
                   const Floats& input, const Floats& own_input,
                   decltype(cpu::Linear)* product = cpu::Linear) {
    CheckProduct(module, weight, product);
    CheckCodes(module, weight, input, fed_codes_);
    CheckCodes(module, weight, own_input, own_codes_);
  }

  // Ours, of the reference's values; compared with its own of `name`.
  Floats CheckNorm(const std::string& name, const Floats& x, int64_t stride,
                   const Floats& gain);
  Floats CheckInner(const std::string& module);
  // Rows (tokens, L + R) to `cache`, which has one layer and one block.
  cpu::KvLayer Append(const LayerWeights& layer, const Floats& rows,
                      KvCache& cache);
  void CheckCache(int64_t index);
  void CheckAttended(int64_t index);
  void CheckAttention(int64_t index);
  void CheckMlp(const std::string& module, const MlpWeights& weights,
                const Floats& input, const Floats& own_input,
                decltype(cpu::Linear)* down);
  void CheckRouter(int64_t index, const Floats& input);
  void CheckExperts(int64_t index, const Floats& input,
                    const Floats& own_input);

  static constexpr int32_t kBlock = 0;

  std::unique_ptr<SafetensorsFile> golden_;
  std::optional<CheckedModel> model_;
  ModelWeights weights_;
  cpu::RopeTable rope_;
  cpu::ThreadPool pool_{1};
  int64_t tokens_ = 0;
  std::vector<cpu::TokenPlace> places_;
  Floats cosines_, sines_;  // (tokens, R / 2)

  CodeCount fed_codes_;    // of the reference's inputs
  CodeCount own_codes_;    // of our own
  CodeCount cache_codes_;  // of both
  double largest_error_ = 0.0;
  int64_t products_ = 0;
};

// What QuantizeInput makes of x, its scales compared with the reference's.
Codes LayerGoldenTest::OwnCodes(const std::string& module, const Weight& weight,
                                const Floats& x) {
  const Floats scales = Seen(module + ".scales");
  const int64_t rows = static_cast<int64_t>(x.size()) / weight.columns;
  const cpu::QuantizedInput input =
      cpu::QuantizeInput(pool_, weight, x.data(), rows);
  Codes codes;
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t k = 0; k < weight.columns; ++k) {
      const float scale = InputScale(weight, scales, t, k);
      double value = input.values[t * weight.columns + k];
      if (weight.dynamic_inputs == DynamicInputs::kGroup) {
        value /= scale;
      } else {
        const float own = input.scales.empty() ? input.scale : input.scales[t];
        EXPECT_NEAR(own, scale, kErrorMost * scale) << module;
      }
      codes.push_back(E4m3Of(value));
    }
  }
  return codes;
}

void LayerGoldenTest::CheckProduct(const std::string& module,
                                   const Weight& weight,
                                   decltype(cpu::Linear)* product) {
  const Codes codes = SeenCodes(module + ".codes");
  const Floats scales = Seen(module + ".scales");
  const int64_t rows = static_cast<int64_t>(codes.size()) / weight.columns;
  Floats x(codes.size());
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t k = 0; k < weight.columns; ++k) {
      const int64_t i = t * weight.columns + k;
      x[i] = static_cast<float>(E4m3Value(codes[i])) *
             InputScale(weight, scales, t, k);
    }
  }
  // Quantised again they are the same: so these are what is multiplied.
  ASSERT_EQ(OwnCodes(module, weight, x), codes) << module;
  Floats out(rows * weight.rows);
  product(pool_, weight, x.data(), rows, out.data());
  ExpectClose(module, out, Seen(module + ".output"), weight.rows);
  ++products_;
}

Floats LayerGoldenTest::CheckNorm(const std::string& name, const Floats& x,
                                  int64_t stride, const Floats& gain) {
  const int64_t size = static_cast<int64_t>(gain.size());
  Floats out(tokens_ * size);
  cpu::RmsNorm(pool_, x.data(), stride, gain.data(),
               model_->config.rms_norm_eps, tokens_, size, out.data(), size);
  ExpectClose(name, out, Seen(name), size);
  return out;
}

cpu::KvLayer LayerGoldenTest::Append(const LayerWeights& layer,
                                     const Floats& rows, KvCache& cache) {
  const ModelConfig& c = model_->config;
  const int64_t size = c.kv_row_elements();
  Floats latents;
  for (int64_t t = 0; t < tokens_; ++t) {
    latents.insert(latents.end(), rows.begin() + t * size,
                   rows.begin() + t * size + c.kv_lora_rank);
  }
  const cpu::KvLayer out = {.dtype = cache.dtype(),
                            .data = cache.Block(0, 0),
                            .latent = c.kv_lora_rank,
                            .rope = c.qk_rope_head_dim,
                            .scale = layer.kv_scale};
  std::vector<uint8_t> finite(tokens_, 1);
  cpu::KvAppend(pool_, places_, latents.data(), rows.data() + c.kv_lora_rank,
                size, out, finite.data());
  EXPECT_EQ(finite, std::vector<uint8_t>(tokens_, 1));
  return out;
}

// Latent and k_pe, and their codes in a cache of either dtype.
void LayerGoldenTest::CheckCache(int64_t index) {
  const ModelConfig& c = model_->config;
  const LayerWeights& layer = weights_.layers[index];
  const std::string module = Attention(index);
  const int64_t latent = c.kv_lora_rank;
  const int64_t size = c.kv_row_elements();
  const Floats row = Seen(module + ".row");  // (tokens, L + R)
  Floats own = Seen(module + ".kv_a_proj_with_mqa.output");
  cpu::RopeApply(pool_, cosines_.data(), sines_.data(), tokens_, 1,
                 c.qk_rope_head_dim, own.data() + latent, size, 0);
  cpu::RmsNorm(pool_, own.data(), size, layer.latent_norm.data(),
               c.rms_norm_eps, tokens_, latent, own.data(), size);
  ExpectClose(module + ".row", own, row, size);

  for (const auto& [dtype, name] : {std::pair(KvDtype::kFp8E4m3, ".e4m3"),
                                    std::pair(KvDtype::kFp8E5m2, ".e5m2")}) {
    for (const Floats& rows : {row, own}) {
      KvCache cache(dtype, 1, 1, size);
      Append(layer, rows, cache);
      const auto* codes = reinterpret_cast<const uint8_t*>(cache.Block(0, 0));
      cache_codes_.Add(module + name, Codes(codes, codes + tokens_ * size),
                       SeenCodes(module + name));
    }
  }
}

// Queries and cache to the heads' values: kv_b in its absorbed form.
void LayerGoldenTest::CheckAttended(int64_t index) {
  const ModelConfig& c = model_->config;
  const LayerWeights& layer = weights_.layers[index];
  const std::string module = Attention(index);
  KvCache memory(kCacheDtype, 1, 1, c.kv_row_elements());
  const cpu::KvLayer cache = Append(layer, Seen(module + ".row"), memory);

  Floats q =
      Seen(module + (c.q_lora_rank == 0 ? ".q_proj" : ".q_b_proj") + ".output");
  cpu::RopeApply(pool_, cosines_.data(), sines_.data(), tokens_, c.heads,
                 c.qk_rope_head_dim, q.data() + c.qk_nope_head_dim,
                 c.heads * c.qk_head_dim(), c.qk_head_dim());
  Floats query(tokens_ * c.heads * c.kv_row_elements());
  cpu::AbsorbQuery(pool_, layer.kv_b, q.data(), tokens_, query.data());
  Floats attended(tokens_ * c.heads * c.kv_lora_rank);
  cpu::MlaAttention(pool_, places_, query.data(), c.heads,
                    AttentionScale(c, rope_) * layer.kv_scale, cache,
                    attended.data());
  Floats values(tokens_ * c.heads * c.v_head_dim);
  cpu::AbsorbValue(pool_, layer.kv_b, attended.data(), tokens_, values.data());
  const Floats expected = Seen(module + ".values");
  ExpectClose(module + ".values", values, expected, c.heads * c.v_head_dim);
  CheckLinear(module + ".o_proj", layer.o, expected, values,
              cpu::LinearRowParallel);
}

void LayerGoldenTest::CheckAttention(int64_t index) {
  const ModelConfig& c = model_->config;
  const LayerWeights& layer = weights_.layers[index];
  const std::string module = Attention(index);
  const Floats input = Seen(module + ".input");
  const Floats own = CheckNorm(module + ".input", Seen(module + ".hidden"),
                               c.hidden_size, layer.input_norm);
  if (c.q_lora_rank == 0) {
    CheckLinear(module + ".q_proj", layer.q, input, own);
  } else {
    CheckLinear(module + ".q_a_proj", layer.q_a, input, own);
    CheckLinear(module + ".q_b_proj", layer.q_b, Seen(module + ".q_a"),
                CheckNorm(module + ".q_a", Seen(module + ".q_a_proj.output"),
                          c.q_lora_rank, layer.q_norm));
  }
  CheckLinear(module + ".kv_a_proj_with_mqa", layer.kv_a, input, own);
  CheckCache(index);
  CheckAttended(index);
}

// silu(gate) * up of the reference's gate and up.
Floats LayerGoldenTest::CheckInner(const std::string& module) {
  Floats inner = Seen(module + ".gate_proj.output");
  const Floats up = Seen(module + ".up_proj.output");
  const Floats expected = Seen(module + ".inner");
  cpu::SiluMul(pool_, inner.data(), up.data(),
               static_cast<int64_t>(inner.size()), inner.data());
  const int64_t size = golden_->tensors().at(module + ".inner").shape[1];
  ExpectClose(module + ".inner", inner, expected, size);
  return inner;
}

void LayerGoldenTest::CheckMlp(const std::string& module,
                               const MlpWeights& weights, const Floats& input,
                               const Floats& own_input,
                               decltype(cpu::Linear)* down) {
  CheckLinear(module + ".gate_proj", weights.gate, input, own_input);
  CheckLinear(module + ".up_proj", weights.up, input, own_input);
  CheckLinear(module + ".down_proj", weights.down, Seen(module + ".inner"),
              CheckInner(module), down);
}

void LayerGoldenTest::CheckRouter(int64_t index, const Floats& input) {
  const ModelConfig& c = model_->config;
  const LayerWeights& layer = weights_.layers[index];
  const std::string module = FeedForward(index);
  const int64_t top_k = c.router.top_k;
  std::vector<int32_t> ids(tokens_ * top_k);
  Floats weights(ids.size());
  cpu::Router(pool_, c.router, layer.router,
              layer.correction.empty() ? nullptr : layer.correction.data(),
              input.data(), tokens_, ids.data(), weights.data());
  EXPECT_EQ(ids, testing::Values<int32_t>(*golden_, module + ".expert_ids"));
  ExpectClose(module + ".expert_weights", weights,
              Seen(module + ".expert_weights"), top_k);
}

// Each expert alone, for the tokens that chose it; then all of them at once, as
// a step runs them.
void LayerGoldenTest::CheckExperts(int64_t index, const Floats& input,
                                   const Floats& own_input) {
  const ModelConfig& c = model_->config;
  const LayerWeights& layer = weights_.layers[index];
  const std::string module = FeedForward(index);
  const int64_t hidden = c.hidden_size;
  const int64_t top_k = c.router.top_k;
  const auto ids = testing::Values<int32_t>(*golden_, module + ".expert_ids");
  Floats expected(ids.size() * hidden);  // (tokens, top_k, hidden)
  for (int64_t e = 0; e < c.router.experts; ++e) {
    const std::string expert = absl::StrCat(module, ".experts.", e);
    Floats rows;
    Floats own_rows;
    std::vector<size_t> slots;
    for (size_t slot = 0; slot < ids.size(); ++slot) {
      if (ids[slot] != e) continue;
      const int64_t begin = static_cast<int64_t>(slot) / top_k * hidden;
      rows.insert(rows.end(), input.begin() + begin,
                  input.begin() + begin + hidden);
      own_rows.insert(own_rows.end(), own_input.begin() + begin,
                      own_input.begin() + begin + hidden);
      slots.push_back(slot);
    }
    if (slots.empty()) continue;
    const cpu::Expert& weights = layer.experts[e];
    CheckMlp(expert, {weights.gate, weights.up, weights.down}, rows, own_rows,
             cpu::Linear);
    const Floats outputs = Seen(expert + ".down_proj.output");
    for (size_t i = 0; i < slots.size(); ++i) {
      std::copy_n(outputs.begin() + i * hidden, hidden,
                  expected.begin() + slots[i] * hidden);
    }
  }
  Floats slots(expected.size());
  cpu::Experts(pool_, layer.experts, input.data(), tokens_, ids.data(), top_k,
               slots.data());
  // No code of these few inner values falls to the other side.
  ExpectClose(module + ".experts", slots, expected, hidden);
}

TEST_P(LayerGoldenTest, EveryOperationMatchesTheReference) {
  const ModelConfig& c = model_->config;
  for (int64_t i = 0; i < c.layers; ++i) {
    CheckAttention(i);
    const LayerWeights& layer = weights_.layers[i];
    const std::string module = FeedForward(i);
    const Floats input = Seen(module + ".input");
    const Floats own = CheckNorm(module + ".input", Seen(module + ".hidden"),
                                 c.hidden_size, layer.attention_norm);
    CheckMlp(layer.experts.empty() ? module : module + ".shared_experts",
             layer.mlp, input, own, cpu::LinearRowParallel);
    if (layer.experts.empty()) continue;
    CheckRouter(i, input);
    CheckExperts(i, input, own);
  }
  int64_t products = 0;
  for (const auto& [name, tensor] : golden_->tensors()) {
    products += name.ends_with(".codes");
  }
  EXPECT_EQ(products, products_);
  for (const auto& [name, count] :
       {std::pair("fed_codes", fed_codes_), std::pair("own_codes", own_codes_),
        std::pair("cache_codes", cache_codes_)}) {
    EXPECT_LE(static_cast<double>(count.other),
              kOtherCodesMost * static_cast<double>(count.all))
        << name;
    RecordProperty(name, absl::StrCat(count.other, " of ", count.all));
  }
  RecordProperty("largest_error", absl::StrCat(largest_error_));
  RecordProperty("products", absl::StrCat(products_));
}

INSTANTIATE_TEST_SUITE_P(Formats, LayerGoldenTest,
                         ::testing::Values("lite_autofp8", "lite_tensor",
                                           "lite_channel", "lite_block",
                                           "full_autofp8", "full_tensor",
                                           "full_channel", "full_block",
                                           "v3_autofp8", "v3_tensor",
                                           "v3_channel", "v3_block"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace invar
