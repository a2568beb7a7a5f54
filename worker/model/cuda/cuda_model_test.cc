// The whole model on a GPU: the contract's bits in any chunking and company,
// and values near the CPU's.
#include "worker/model/cuda/cuda_model.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "worker/model/digests.h"
#include "worker/model/testing/random_checkpoint.h"

namespace invar::cuda {
namespace {

constexpr int64_t kLength = 300;

struct Case {
  std::string name;
  KvDtype kv_dtype = KvDtype::kFp8E5m2;
  bool Has(const char* trait) const {
    return name.find(trait) != std::string::npos;
  }
};

Quantization QuantizationOf(const Case& c) {
  if (c.Has("static_fp8")) return invar::testing::StaticFp8();
  Quantization quantization;
  if (c.Has("channel_fp8")) {
    quantization.format = CheckpointFormat::kCompressedTensors;
    quantization.weights = WeightScaling::kChannel;
    quantization.inputs = InputScaling::kToken;
    quantization.kv_scales = true;
    quantization.ignored = {"re:.*lm_head$"};
  }
  if (c.Has("block_fp8")) {
    quantization.format = CheckpointFormat::kBlockFp8;
    quantization.weights = WeightScaling::kBlock;
    quantization.inputs = InputScaling::kGroup;
  }
  return quantization;
}

ModelConfig Config(const Case& c) {
  ModelConfig config = invar::testing::EmbeddedModelConfig();
  config.layers = 3;
  config.quantization = QuantizationOf(c);
  config.tie_word_embeddings = c.Has("tied");
  if (c.Has("v3")) {
    config.architecture = Architecture::kDeepseekV3;
    config.router.scoring = cpu::RouterScoring::kSigmoid;
    config.router.method = cpu::RouterMethod::kNoauxTc;
    config.router.groups = 4;
    config.router.top_groups = 2;
    config.router.normalise = true;
  }
  if (c.Has("q_lora")) {
    config.q_lora_rank = 96;
    config.router.method = cpu::RouterMethod::kGroupLimitedGreedy;
    config.router.groups = 4;
    config.router.top_groups = 2;
    config.router.scaling_factor = 16.0f;
  }
  return config;
}

// What is BF16 becomes F16.
void ToFp16(std::vector<invar::testing::RawTensor>& tensors) {
  for (invar::testing::RawTensor& tensor : tensors) {
    if (tensor.dtype != "BF16") continue;
    tensor.dtype = "F16";
    for (size_t i = 0; i < tensor.bytes.size(); i += 2) {
      uint16_t code;
      std::memcpy(&code, &tensor.bytes[i], sizeof(code));
      const float value =
          std::bit_cast<float>(static_cast<uint32_t>(code) << 16);
      const auto half = static_cast<_Float16>(value);
      std::memcpy(&tensor.bytes[i], &half, sizeof(half));
    }
  }
}

class CudaModelTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const auto device = UseDevice(0);
    if (!device.ok()) GTEST_SKIP() << device.status().message();
    folder_ = ::testing::TempDir() + "/cuda_model_" + GetParam().name;
    const ModelConfig config = Config(GetParam());
    auto tensors = invar::testing::RandomTensors(config, 7);
    if (GetParam().Has("fp16")) ToFp16(tensors);
    ASSERT_TRUE(invar::testing::WriteCheckpoint(folder_, config, tensors).ok());
    for (int64_t i = 0; i < kLength; ++i) {
      ids_.push_back(static_cast<int32_t>((i * 7919 + 13) % 1000));
    }
  }

  std::unique_ptr<Model> Load(int64_t step_tokens) const {
    auto model = CudaModel::Load({.path = folder_,
                                  .kv_dtype = GetParam().kv_dtype,
                                  .step_tokens = step_tokens},
                                 {});
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }

  // Logits of all positions, prefilled in chunks.
  std::vector<float> Logits(Model& model, int64_t chunk) const {
    const int64_t vocab = model.config().vocab_size;
    const auto cache = model.NewKvCache(kLength / kBlockTokens + 1);
    std::vector<int32_t> blocks(cache->blocks());
    std::iota(blocks.begin(), blocks.end(), 0);
    std::vector<float> logits(kLength * vocab);
    for (int64_t first = 0; first < kLength; first += chunk) {
      const int64_t size = std::min(chunk, kLength - first);
      const SequenceSlice slice = {
          .token_ids = std::span(ids_).subspan(first, size),
          .first_position = first,
          .block_ids = blocks,
          .logit_rows = size};
      model.Forward({&slice, 1}, *cache,
                    std::span(logits).subspan(first * vocab, size * vocab));
    }
    return logits;
  }

  std::string folder_;
  std::vector<int32_t> ids_;
};

TEST_P(CudaModelTest, ChunksMoveNoOperation) {
  const auto model = Load(512);
  const auto alone = DumpDigests(*model, ids_, 1);
  for (const int64_t chunk : {1, 7, 64, 300}) {
    EXPECT_EQ(FirstDifference(alone, DumpDigests(*model, ids_, chunk)), "")
        << "chunk " << chunk;
  }
}

TEST_P(CudaModelTest, OverlappedKernelsGiveTheSameLogits) {
  const auto model = Load(512);
  const auto passes = Load(48);
  const std::vector<float> alone = Logits(*model, 1);
  for (const int64_t chunk : {1, 7, 64, 300}) {
    const auto same = [&](Model& other) {
      const std::vector<float> logits = Logits(other, chunk);
      return std::memcmp(logits.data(), alone.data(),
                         alone.size() * sizeof(float)) == 0;
    };
    EXPECT_TRUE(same(*model)) << "chunk " << chunk;
    EXPECT_TRUE(same(*passes)) << "chunk " << chunk;
  }
}

// Of 40 positions of one block: the first half prefilled, then what is chosen
// at each of the others, decoded by way of Answer, hence of graphs.
std::vector<std::pair<int32_t, float>> Decoded(Model& model, KvCache& cache,
                                               std::span<const int32_t> ids) {
  const std::vector<int32_t> blocks = {0};
  const SequenceSlice prompt = {.token_ids = ids.first(20),
                                .block_ids = blocks};
  model.Forward({&prompt, 1}, cache, {});
  std::vector<std::pair<int32_t, float>> decoded;
  for (int64_t i = 20; i < 40; ++i) {
    const SequenceSlice slice = {.token_ids = ids.subspan(i, 1),
                                 .first_position = i,
                                 .block_ids = blocks,
                                 .logit_rows = 1};
    RowRequest request;
    request.task = RowTask::kChoose;
    request.log_prob = true;
    RowAnswer answer;
    model.Answer({&slice, 1}, cache, model.config().vocab_size, {&request, 1},
                 {&answer, 1});
    decoded.emplace_back(answer.token.token_id, answer.token.log_prob);
  }
  return decoded;
}

// A second cache may begin where one that is gone began, with its layers
// elsewhere.
TEST_P(CudaModelTest, GraphsAreOfOneCache) {
  const auto model = Load(64);
  const auto memory = model->NewKvCache(40);
  const auto view = [&](int64_t blocks) {
    return KvCache(GetParam().kv_dtype, model->config().layers, blocks, kRow,
                   KvCache::Storage(memory->Block(0, 0), [](std::byte*) {}));
  };
  KvCache small = view(2);
  KvCache large = view(40);
  const auto ids = std::span<const int32_t>(ids_);
  Decoded(*model, small, ids.subspan(100));
  const auto in_large = Decoded(*model, large, ids);
  const auto alone = model->NewKvCache(1);
  EXPECT_EQ(in_large, Decoded(*model, *alone, ids));
}

using Outputs = std::map<std::pair<int64_t, std::string>, std::vector<float>>;

// Every operation's output over the whole text, in one step.
Outputs AllOutputs(Model& model, std::span<const int32_t> ids) {
  Outputs outputs;
  const int64_t size = static_cast<int64_t>(ids.size());
  const auto cache = model.NewKvCache(size / kBlockTokens + 1);
  std::vector<int32_t> blocks(cache->blocks());
  std::iota(blocks.begin(), blocks.end(), 0);
  std::vector<float> logits(size * model.config().vocab_size);
  model.Observe([&](const OpOutput& out) {
    outputs[{out.layer, std::string(out.op)}].assign(
        out.values, out.values + out.rows * out.row_size);
  });
  const SequenceSlice slice = {
      .token_ids = ids, .block_ids = blocks, .logit_rows = size};
  model.Forward({&slice, 1}, *cache, logits);
  model.Observe({});
  return outputs;
}

double RelativeError(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0;
  double square = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += (a[i] - b[i]) * (a[i] - b[i]);
    square += b[i] * b[i];
  }
  return std::sqrt(error / square);
}

// Inputs of products are rounded here and not there, and what is quantised can
// flip by a step; from layer to layer that grows, so the first one is held to
// a bound and the rest is for people to read.
TEST_P(CudaModelTest, FirstLayerIsNearTheCpus) {
  const auto gpu = Load(512);
  const auto cpu =
      Model::Load({.path = folder_, .kv_dtype = GetParam().kv_dtype});
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  const Outputs a = AllOutputs(*gpu, ids_);
  const Outputs b = AllOutputs(**cpu, ids_);
  for (const auto& [key, values] : a) {
    const auto& [layer, op] = key;
    const auto other = b.find(key);
    if (other == b.end() || op == "kv_a" || op == "q" || op == "hidden") {
      continue;  // before and after rotation or addition
    }
    ASSERT_EQ(values.size(), other->second.size()) << op;
    const double error = RelativeError(values, other->second);
    std::printf("layer %lld %-14s %.2e\n", static_cast<long long>(layer),
                op.c_str(), error);
    if (layer == 0) {
      EXPECT_LT(error, GetParam().Has("fp8") ? 0.1 : 4e-2) << op;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, CudaModelTest,
    ::testing::Values(Case{"bf16", KvDtype::kFp8E5m2},
                      Case{"bf16_bf16_cache", KvDtype::kBf16},
                      Case{"static_fp8", KvDtype::kFp8E5m2},
                      Case{"static_fp8_e4m3_cache", KvDtype::kFp8E4m3},
                      Case{"static_fp8_bf16_cache", KvDtype::kBf16},
                      Case{"channel_fp8_e4m3_cache", KvDtype::kFp8E4m3},
                      Case{"block_fp8", KvDtype::kFp8E4m3},
                      Case{"q_lora_static_fp8", KvDtype::kFp8E4m3},
                      Case{"fp16", KvDtype::kBf16},
                      Case{"tied_bf16", KvDtype::kFp8E4m3},
                      Case{"v3_bf16", KvDtype::kFp8E4m3},
                      Case{"v3_block_fp8", KvDtype::kBf16}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace invar::cuda
