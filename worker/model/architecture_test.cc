// What a config implies before a weight is read: tensors, memory, and what a
// GPU does not take of it.
#include "worker/model/checkpoint/architecture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/model/checkpoint/gpu_support.h"
#include "worker/model/checkpoint/memory_needs.h"
#include "worker/model/testing/random_checkpoint.h"

namespace invar {
namespace {

using ::testing::HasSubstr;

// As DeepSeek-V2-Lite's config.json has it; V2's beside it where it differs.
std::string PublishedConfig(bool lite, const std::string& quantization = "") {
  return absl::StrCat(
      R"({"architectures": ["DeepseekV2ForCausalLM"],
  "attention_bias": false, "attention_dropout": 0.0, "aux_loss_alpha": 0.001,
  "bos_token_id": 100000, "eos_token_id": 100001, "first_k_dense_replace": 1,
  "hidden_act": "silu", "initializer_range": 0.02, "kv_lora_rank": 512,
  "max_position_embeddings": 163840, "model_type": "deepseek_v2",
  "moe_layer_freq": 1, "n_shared_experts": 2, "norm_topk_prob": false,
  "num_experts_per_tok": 6, "pretraining_tp": 1, "qk_nope_head_dim": 128,
  "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
  "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40,
    "mscale": 0.707, "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 4096, "type": "yarn"},
  "rope_theta": 10000, "scoring_func": "softmax", "seq_aux": true,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true,
  "v_head_dim": 128, "vocab_size": 102400, )",
      lite ? R"("hidden_size": 2048, "intermediate_size": 10944,
  "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 64,
  "num_attention_heads": 16, "num_hidden_layers": 27,
  "num_key_value_heads": 16, "q_lora_rank": null, "routed_scaling_factor": 1.0,
  "topk_group": 1, "topk_method": "greedy")"
           : R"("hidden_size": 5120, "intermediate_size": 12288,
  "moe_intermediate_size": 1536, "n_group": 8, "n_routed_experts": 160,
  "num_attention_heads": 128, "num_hidden_layers": 60,
  "num_key_value_heads": 128, "q_lora_rank": 1536,
  "routed_scaling_factor": 16.0, "topk_group": 3,
  "topk_method": "group_limited_greedy")",
      quantization, "}");
}

constexpr char kAutoFp8[] =
    R"(, "quantization_config": {"activation_scheme": "static",
        "ignored_layers": ["lm_head"], "quant_method": "fp8"})";

ModelConfig Parse(const std::string& text) {
  const auto config = ParseModelConfig(text, "config.json");
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : ModelConfig();
}

int64_t Elements(const std::vector<TensorSpec>& tensors, TensorKind kind) {
  int64_t all = 0;
  for (const TensorSpec& tensor : tensors) {
    int64_t elements = tensor.kind == kind ? 1 : 0;
    for (const int64_t size : tensor.shape) elements *= size;
    all += elements;
  }
  return all;
}

TEST(Architecture, HasThePublishedTensors) {
  const auto lite = ArchitectureTensors(Parse(PublishedConfig(true)));
  EXPECT_EQ(lite.size(), 5291u);
  EXPECT_EQ(Elements(lite, TensorKind::kFloat), 15'706'484'224);
  const auto full = ArchitectureTensors(Parse(PublishedConfig(false)));
  EXPECT_EQ(Elements(full, TensorKind::kFloat), 235'741'434'880);

  const ModelConfig fp8 = Parse(PublishedConfig(true, kAutoFp8));
  EXPECT_EQ(fp8.quantization.format, CheckpointFormat::kAutoFp8);
  const auto quantised = ArchitectureTensors(fp8);
  // Two scales each for every Linear of a block.
  const int64_t linears = 27 * 4 + 3 + 26 * (64 + 1) * 3;
  EXPECT_EQ(quantised.size(), 5291u + 2 * linears);
  EXPECT_EQ(Elements(quantised, TensorKind::kScale), 2 * linears);
  // Embedding, LM head, routers and norms stay as they are.
  EXPECT_EQ(Elements(quantised, TensorKind::kFloat),
            2 * 102400 * 2048 + 26 * 64 * 2048 + 27 * (2 * 2048 + 512) + 2048);
}

TEST(Architecture, ReadsThePublishedFields) {
  const ModelConfig lite = Parse(PublishedConfig(true));
  EXPECT_EQ(lite.q_lora_rank, 0);
  EXPECT_EQ(lite.rope_scaling.factor, 40.0);
  EXPECT_EQ(lite.rope_scaling.mscale_all_dim, 0.707);
  EXPECT_EQ(lite.router.method, cpu::RouterMethod::kGreedy);
  const ModelConfig full = Parse(PublishedConfig(false));
  EXPECT_EQ(full.q_lora_rank, 1536);
  EXPECT_EQ(full.router.method, cpu::RouterMethod::kGroupLimitedGreedy);
  EXPECT_EQ(full.router.groups, 8);
  EXPECT_EQ(full.router.top_groups, 3);
  EXPECT_EQ(full.router.scaling_factor, 16.0f);
}

// 576 elements a token and layer: 15,552 bytes in FP8.
TEST(MemoryNeeds, OfTheCacheAreWholeBlocks) {
  const ModelConfig lite = Parse(PublishedConfig(true));
  EXPECT_EQ(KvBytesPerToken(lite, KvDtype::kFp8E5m2), 15'552);
  EXPECT_EQ(KvBytesPerToken(lite, KvDtype::kBf16), 31'104);
  EXPECT_EQ(KvBytes(lite, KvDtype::kFp8E4m3, {.context = 65, .sequences = 3}),
            3 * 128 * 15'552);
}

// Headers of a checkpoint as `config` has it.
class Headers {
 public:
  explicit Headers(const ModelConfig& config)
      : specs_(ArchitectureTensors(config)) {
    for (const TensorSpec& spec : specs_) {
      Tensor& tensor = tensors_[spec.name];
      tensor.shape = spec.shape;
      tensor.dtype = spec.kind == TensorKind::kFp8     ? TensorDtype::kF8E4m3
                     : spec.kind == TensorKind::kScale ? TensorDtype::kF32
                                                       : TensorDtype::kBf16;
    }
  }
  Tensor& operator[](const std::string& name) { return tensors_.at(name); }
  // Of all tensors, or of those that `which` is true of.
  void SetDtype(TensorDtype dtype,
                const std::function<bool(const TensorSpec&)>& which) {
    for (const TensorSpec& spec : specs_) {
      if (which(spec)) tensors_[spec.name].dtype = dtype;
    }
  }
  std::vector<TensorHeader> Get() const {
    std::vector<TensorHeader> headers;
    for (const TensorSpec& spec : specs_) {
      headers.push_back({&spec, &tensors_.at(spec.name)});
    }
    return headers;
  }

 private:
  std::vector<TensorSpec> specs_;
  std::map<std::string, Tensor> tensors_;
};

std::string FirstGpuProblem(const ModelConfig& config, const Headers& headers) {
  const auto problems = CheckGpu(config, headers.Get());
  return problems.empty() ? "" : std::string(problems.front().message());
}

TEST(CheckGpu, TakesThePublishedShapes) {
  for (const bool lite : {true, false}) {
    for (const char* quantization : {"", kAutoFp8}) {
      const ModelConfig config = Parse(PublishedConfig(lite, quantization));
      Headers headers(config);
      EXPECT_EQ(FirstGpuProblem(config, headers), "");
      headers.SetDtype(TensorDtype::kF16, [](const TensorSpec& spec) {
        return spec.kind == TensorKind::kFloat;
      });
      EXPECT_EQ(FirstGpuProblem(config, headers), "");
    }
  }
  ModelConfig v3 = testing::EmbeddedModelConfig();
  v3.architecture = Architecture::kDeepseekV3;
  v3.quantization = {.format = CheckpointFormat::kBlockFp8,
                     .weights = WeightScaling::kBlock,
                     .inputs = InputScaling::kGroup};
  EXPECT_EQ(FirstGpuProblem(v3, Headers(v3)), "");
}

TEST(CheckGpu, NamesWhatItDoesNotTake) {
  const ModelConfig config = Parse(PublishedConfig(true));
  const std::string q = "model.layers.3.self_attn.q_proj";
  const std::string up = "model.layers.3.mlp.experts.9.up_proj";
  Headers wide(config);
  wide[q + ".weight"].dtype = TensorDtype::kF32;
  EXPECT_THAT(FirstGpuProblem(config, wide), HasSubstr(q + " is F32"));

  Headers mixed(config);
  mixed[up + ".weight"].dtype = TensorDtype::kF16;
  EXPECT_THAT(FirstGpuProblem(config, mixed),
              HasSubstr(up + " is F16 and model.layers.3.mlp.experts.0.gate"));
  // What is not stacked may differ; a router may be F32.
  Headers apart(config);
  apart[q + ".weight"].dtype = TensorDtype::kF16;
  apart["model.layers.3.mlp.gate.weight"].dtype = TensorDtype::kF32;
  EXPECT_EQ(FirstGpuProblem(config, apart), "");

  ModelConfig weights_only = Parse(PublishedConfig(true, kAutoFp8));
  weights_only.quantization.inputs = InputScaling::kNone;
  EXPECT_THAT(FirstGpuProblem(weights_only, Headers(weights_only)),
              HasSubstr("is FP8 and its inputs are not"));

  const ModelConfig narrow = testing::TinyModelConfig();
  EXPECT_THAT(FirstGpuProblem(narrow, Headers(narrow)),
              HasSubstr("kv_lora_rank is"));
  EXPECT_EQ(CheckGpu(narrow, Headers(narrow).Get(), 3).size(), 3u);
}

// What a worker says that starts on a GPU with too little memory.
TEST(CheckWeightsFit, SaysWhatIsThereAndWhatToDo) {
  EXPECT_TRUE(CheckWeightsFit(1000, 1000).ok());
  const absl::Status status = CheckWeightsFit(1001, 1000);
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_EQ(status.message(),
            "the weights take 1001 bytes of GPU memory, of which 1000 are "
            "free: stop what else uses the GPU, or use a larger one");
}

TEST(StepDoesNotFit, SaysWhatToDo) {
  const absl::Status status = StepDoesNotFit(absl::ResourceExhaustedError(
      "the memory of a step needs 4096 bytes of GPU memory: out of memory"));
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_EQ(status.message(),
            "the memory of a step needs 4096 bytes of GPU memory: out of "
            "memory: lower limits.max_step_tokens or "
            "limits.max_context_tokens, or stop what else uses the GPU");
}

// Weights of one matrix are its rows from the top, in the order in which the
// kernels count them: gate and up of each expert in turn.
TEST(StackOf, IsTheKernelsLayout) {
  const auto expect = [](const std::string& module, const std::string& stack,
                         int64_t index) {
    const StackPlace place = StackOf(module);
    EXPECT_EQ(place.stack, stack);
    EXPECT_EQ(place.index, index) << module;
  };
  const std::string mlp = "model.layers.12.mlp";
  expect(mlp + ".gate_proj", mlp + ".gate_up_proj", 0);
  expect(mlp + ".up_proj", mlp + ".gate_up_proj", 1);
  expect(mlp + ".down_proj", mlp + ".down_proj", 0);
  const std::string shared = mlp + ".shared_experts";
  expect(shared + ".up_proj", shared + ".gate_up_proj", 1);
  expect(shared + ".down_proj", shared + ".down_proj", 0);
  expect(mlp + ".experts.0.gate_proj", mlp + ".experts.gate_up_proj", 0);
  expect(mlp + ".experts.17.gate_proj", mlp + ".experts.gate_up_proj", 34);
  expect(mlp + ".experts.17.up_proj", mlp + ".experts.gate_up_proj", 35);
  expect(mlp + ".experts.17.down_proj", mlp + ".experts.down_proj", 17);
  expect("lm_head", "lm_head", 0);
  expect("model.layers.1.self_attn.q_a_proj",
         "model.layers.1.self_attn.q_a_proj", 0);
}

}  // namespace
}  // namespace invar
