// What config.json and quantisation configs may say, and what that means.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/model/model.h"
#include "worker/model/testing/load_test_case.h"
#include "worker/model/weights.h"

namespace invar {
namespace {

using ::testing::AllOf;
using testing::Find;
using ::testing::HasSubstr;
using testing::RawTensor;

class ConfigTest : public testing::LoadTestCase {};

TEST_F(ConfigTest, ConfigFieldsAreChecked) {
  const std::string good = testing::ConfigJson(config_);
  ASSERT_TRUE(ParseModelConfig(good, "config.json").ok());
  struct Case {
    std::string from, to;
    absl::StatusCode code;
    std::string word;
  };
  using enum absl::StatusCode;
  const std::vector<Case> cases = {
      {"{", "[", kInvalidArgument, "not valid JSON"},
      {"DeepseekV2ForCausalLM", "LlamaForCausalLM", kUnimplemented,
       "architectures is [\"LlamaForCausalLM\"]"},
      {"\"hidden_size\": 32", "\"hidden_size\": 33", kUnimplemented,
       "hidden_size is 33"},
      {"\"hidden_size\": 32", "\"hidden_size\": \"32\"", kInvalidArgument,
       "hidden_size"},
      {"\"hidden_size\": 32", "\"hidden\": 32", kInvalidArgument,
       "hidden_size is missing"},
      {"\"vocab_size\": 70", "\"vocab_size\": -1", kInvalidArgument,
       "vocab_size is -1"},
      {"\"num_experts_per_tok\": 3", "\"num_experts_per_tok\": 9",
       kInvalidArgument, "num_experts_per_tok is 9"},
      {"\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", kUnimplemented,
       "hidden_act"},
      {"\"hidden_act\"", "\"topk_method\": \"noaux_tc\", \"hidden_act\"",
       kUnimplemented, "noaux_tc"},
      {"\"hidden_act\"", "\"norm_topk_prob\": true, \"hidden_act\"",
       kUnimplemented, "norm_topk_prob"},
      {"\"hidden_act\"",
       "\"rope_scaling\": {\"type\": \"llama3\"}, \"hidden_act\"",
       kUnimplemented, "llama3"},
      {"\"static\"", "\"per_channel\"", kUnimplemented, "activation_scheme"},
      {"\"fp8\"", "\"compressed-tensors\"", kInvalidArgument,
       "quantization_config.format is missing"},
      {"\"fp8\"", "\"awq\"", kUnimplemented, "quant_method"},
  };
  for (const Case& c : cases) {
    std::string text = good;
    ASSERT_NE(text.find(c.from), std::string::npos) << c.from;
    text.replace(text.find(c.from), c.from.size(), c.to);
    const auto config = ParseModelConfig(text, "config.json");
    EXPECT_EQ(config.status().code(), c.code) << config.status();
    EXPECT_THAT(std::string(config.status().message()),
                AllOf(HasSubstr("config.json"), HasSubstr(c.word)));
  }
}

TEST_F(ConfigTest, QuantisationsThatAreNotSupportedAreNamed) {
  config_.quantization = {.format = CheckpointFormat::kCompressedTensors,
                          .weights = WeightScaling::kChannel,
                          .inputs = InputScaling::kToken,
                          .ignored = {"re:.*lm_head$"}};
  const std::string good = testing::ConfigJson(config_);
  ASSERT_TRUE(ParseModelConfig(good, "config.json").ok());
  const std::vector<std::array<std::string, 3>> cases = {
      {"\"channel\"", "\"group\"", "weights.strategy"},
      {"\"token\"", "\"group\"", "input_activations.strategy"},
      {"\"num_bits\": 8", "\"num_bits\": 4", "num_bits is 4"},
      {"float-quantized", "pack-quantized", "format is \"pack-quantized\""},
      {"\"Linear\"", "\"Conv\"", "targets"},
      {"re:.*lm_head$", "re:(a|b)", "re:(a|b)"},
  };
  for (const auto& [from, to, word] : cases) {
    std::string text = good;
    ASSERT_NE(text.find(from), std::string::npos) << from;
    text.replace(text.find(from), from.size(), to);
    const auto config = ParseModelConfig(text, "config.json");
    EXPECT_EQ(config.status().code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(word));
  }
}

TEST_F(ConfigTest, IgnoredModulesByNameParentAndPattern) {
  Quantization quantization = testing::StaticFp8();
  quantization.ignored = {"model.layers.0.self_attn", "lm_head",
                          "re:.*experts.\\d+.up_proj$"};
  EXPECT_FALSE(quantization.Covers("lm_head"));
  EXPECT_FALSE(quantization.Covers("model.layers.0.self_attn.o_proj"));
  EXPECT_FALSE(quantization.Covers("model.layers.1.mlp.experts.12.up_proj"));
  EXPECT_TRUE(quantization.Covers("model.layers.0.self_attn2.o_proj"));
  EXPECT_TRUE(quantization.Covers("model.layers.1.mlp.experts.12.up_proj2"));
  EXPECT_TRUE(quantization.Covers("model.layers.1.mlp.experts.x.up_proj"));
  // Lists are written with "model." in front and without.
  for (const char* name : {"model.layers.1.mlp", "layers.1.mlp"}) {
    quantization.ignored = {name};
    EXPECT_FALSE(quantization.Covers("model.layers.1.mlp.up_proj")) << name;
    EXPECT_TRUE(quantization.Covers("model.layers.11.mlp.up_proj")) << name;
  }
}

// Older compressed-tensors files have another key, and do not name the method.
TEST_F(ConfigTest, CompressionConfigIsAQuantizationConfig) {
  config_.quantization = {.format = CheckpointFormat::kCompressedTensors,
                          .weights = WeightScaling::kChannel,
                          .inputs = InputScaling::kToken,
                          .ignored = {"re:.*lm_head$"}};
  WriteChanged([](auto&) {});
  const auto digest = Model::Load({.path = folder_, .threads = 1});
  ASSERT_TRUE(digest.ok()) << digest.status();
  std::string text = Read("/config.json");
  const auto replace = [&text](const std::string& from, const std::string& to) {
    ASSERT_NE(text.find(from), std::string::npos) << from;
    text.replace(text.find(from), from.size(), to);
  };
  replace("\"quantization_config\"", "\"compression_config\"");
  replace("\"quant_method\"", "\"quantization_status\"");
  const auto config = ParseModelConfig(text, "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->quantization.format, CheckpointFormat::kCompressedTensors);
  EXPECT_EQ(config->quantization.weights, WeightScaling::kChannel);
  EXPECT_EQ(config->quantization.inputs, InputScaling::kToken);
  EXPECT_EQ(config->quantization.ignored, config_.quantization.ignored);
  Write("/config.json", text);
  EXPECT_TRUE(Load().ok()) << Load();
  replace("float-quantized", "int-quantized");
  Write("/config.json", text);
  ExpectRefused(absl::StatusCode::kUnimplemented,
                {"compression_config.format is \"int-quantized\""});
}

// The scale of an expert that calibration gave no token is a placeholder, which
// would saturate: all experts of a layer have the largest one.
TEST_F(ConfigTest, ExpertsShareTheLargestInputScale) {
  constexpr float kPlaceholder = 1.0f / 448.0f;
  const auto set = [](std::vector<RawTensor>& tensors, int expert,
                      const std::string& module, float scale) {
    std::memcpy(Find(tensors, absl::StrCat("model.layers.1.mlp.experts.",
                                           expert, ".", module, ".input_scale"))
                    .bytes.data(),
                &scale, sizeof(scale));
  };
  WriteChanged([&](auto& tensors) {
    for (int e = 0; e < config_.router.experts; ++e) {
      set(tensors, e, "gate_proj", 0.02f);
      set(tensors, e, "up_proj", 0.02f);
      set(tensors, e, "down_proj", 0.03f);
    }
    for (const char* module : {"gate_proj", "up_proj", "down_proj"}) {
      set(tensors, 5, module, kPlaceholder);
    }
    set(tensors, 2, "up_proj", 0.25f);
    set(tensors, 3, "down_proj", 0.5f);
  });
  const auto checked = LoadChecked(folder_);
  ASSERT_TRUE(checked.ok()) << checked.status();
  const ModelWeights weights =
      ReadWeights(checked->config, checked->checkpoint, KvDtype::kFp32);
  for (const cpu::Expert& expert : weights.layers[1].experts) {
    EXPECT_EQ(expert.gate.input_scale, 0.25f);
    EXPECT_EQ(expert.up.input_scale, 0.25f);
    EXPECT_EQ(expert.down.input_scale, 0.5f);
  }
}

TEST_F(ConfigTest, EachProblemOfAConfigIsListed) {
  std::string text = testing::ConfigJson(config_);
  for (const auto& [from, to] :
       {std::pair("\"silu\"", "\"gelu\""), std::pair("\"fp8\"", "\"awq\"")}) {
    text.replace(text.find(from), std::string(from).size(), to);
  }
  std::vector<absl::Status> problems;
  EXPECT_FALSE(ParseModelConfig(text, "config.json", &problems).ok());
  EXPECT_EQ(problems.size(), 2u);
}

TEST_F(ConfigTest, RopeParametersAndRopeScalingMeanTheSame) {
  std::string text = testing::ConfigJson(config_);
  const std::string rope =
      R"({"rope_type": "yarn", "type": "yarn", "factor": 40.0,
          "original_max_position_embeddings": 4096, "mscale": 0.707,
          "mscale_all_dim": 0.707, "rope_theta": 5000.0})";
  const std::string theta = "\"rope_theta\": 10000.0";
  ASSERT_NE(text.find(theta), std::string::npos);
  for (const char* name : {"rope_parameters", "rope_scaling"}) {
    std::string changed = text;
    changed.replace(changed.find(theta), theta.size(),
                    std::string("\"") + name + "\": " + rope);
    const auto config = ParseModelConfig(changed, "config.json");
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->rope_theta, 5000.0);
    EXPECT_EQ(config->rope_scaling.factor, 40.0);
    EXPECT_EQ(config->rope_scaling.mscale_all_dim, 0.707);
  }
}

}  // namespace
}  // namespace invar
