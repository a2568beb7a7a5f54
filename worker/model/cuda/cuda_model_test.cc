// The whole model on a GPU: the contract's bits in any chunking and company,
// and values near the CPU's.
#include "worker/model/cuda/cuda_model.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
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
    folder_ = absl::StrCat(::testing::TempDir(), "/cuda_model_", getpid(), "_",
                           GetParam().name);
    const ModelConfig config = Config(GetParam());
    auto tensors = invar::testing::RandomTensors(config, 7);
    if (GetParam().Has("fp16")) ToFp16(tensors);
    ASSERT_TRUE(invar::testing::WriteCheckpoint(folder_, config, tensors).ok());
    for (int64_t i = 0; i < kLength; ++i) {
      ids_.push_back(static_cast<int32_t>((i * 7919 + 13) % 1000));
    }
  }

  std::unique_ptr<Model> Load(int64_t step_tokens,
                              bool deterministic = true) const {
    auto model = CudaModel::Load({.path = folder_,
                                  .kv_dtype = GetParam().kv_dtype,
                                  .step_tokens = step_tokens,
                                  .deterministic = deterministic},
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

// Texts that a model writes, each with its log-probabilities.
struct Written {
  std::vector<std::vector<int32_t>> ids;
  std::vector<float> log_probs;
  bool operator==(const Written&) const = default;
};

// Three sequences that write on behind their prompts. With `ahead` a step is
// started before the tokens of the one before it are known. From time to time
// one of the rows has a bias, which is the host's to answer.
Written Write(Model& model, std::span<const int32_t> ids, bool ahead) {
  constexpr int kSequences = 3;
  constexpr int64_t kSteps = 40;
  const auto cache = model.NewKvCache(2 * kSequences);
  const std::vector<std::vector<int32_t>> blocks = {{4, 1}, {0, 5}, {2, 3}};
  const cpu::TokenUse bias = {.id = 11, .bias = 100.0f};
  Written written;
  written.ids.resize(kSequences);
  std::vector<int64_t> sizes;
  for (int s = 0; s < kSequences; ++s) sizes.push_back(55 + 4 * s);
  const auto start = [&](int64_t step) {
    std::vector<SequenceSlice> slices;
    std::vector<RowRequest> requests(kSequences);
    for (int s = 0; s < kSequences; ++s) {
      SequenceSlice slice = {
          .token_ids = {}, .block_ids = blocks[s], .logit_rows = 1};
      if (step == 0) {
        slice.token_ids = ids.subspan(50 * s, sizes[s]);
      } else {
        slice.first_position = sizes[s]++;
        if (ahead) {
          slice.token_ids = ids.first(1);
          slice.chosen_row = s;
        } else {
          slice.token_ids = std::span(written.ids[s]).last(1);
        }
      }
      slices.push_back(slice);
      RowRequest& request = requests[s];
      request.task = RowTask::kChoose;
      request.sampling.temperature = s == 1 ? 0.9f : 0.0f;
      request.seed = 5;
      request.position = static_cast<uint64_t>(sizes[s]);
      request.log_prob = true;
      if (step % 7 == 3 && s == 0) request.uses = {&bias, 1};
    }
    model.Start(slices, *cache, model.config().vocab_size, requests);
  };
  start(0);
  for (int64_t step = 1; step <= kSteps; ++step) {
    if (ahead && step < kSteps) start(step);
    std::vector<RowAnswer> answers(kSequences);
    for (const SliceHealth health : model.Finish(answers)) {
      EXPECT_EQ(health, SliceHealth::kFinite);
    }
    for (int s = 0; s < kSequences; ++s) {
      written.ids[s].push_back(answers[s].token.token_id);
      written.log_probs.push_back(answers[s].token.log_prob);
    }
    if (!ahead && step < kSteps) start(step);
  }
  return written;
}

TEST_P(CudaModelTest, StepsInFlightMoveNoBit) {
  const auto model = Load(256);
  const auto passes = Load(2);  // of three tokens: two passes a step
  auto& cuda_model = static_cast<CudaModel&>(*model);
  cuda_model.UseGraphs(false);
  const Written expected = Write(*model, ids_, /*ahead=*/false);
  EXPECT_EQ(Write(*model, ids_, /*ahead=*/true), expected);
  cuda_model.UseGraphs(true);
  EXPECT_EQ(Write(*model, ids_, /*ahead=*/true), expected);
  EXPECT_EQ(Write(*passes, ids_, /*ahead=*/true), expected);
}

// What is made before the first step is all that later ones need, and as if
// they had made it.
TEST_P(CudaModelTest, PreparedStepsHaveTheSameBits) {
  const auto model = Load(256);
  const auto& cuda_model = static_cast<CudaModel&>(*model);
  const auto cache = model->NewKvCache(kLength / kBlockTokens + 1);
  const auto decoded = Decoded(*model, *cache, ids_);
  EXPECT_EQ(cuda_model.graphs(), 1);

  const auto prepared = Load(256);
  const auto& cuda_prepared = static_cast<CudaModel&>(*prepared);
  const auto other = prepared->NewKvCache(cache->blocks());
  prepared->Prepare(*other, model->config().vocab_size);
  const int64_t graphs = cuda_prepared.graphs();
  EXPECT_GT(graphs, 1);
  EXPECT_EQ(Decoded(*prepared, *other, ids_), decoded);
  EXPECT_EQ(cuda_prepared.graphs(), graphs);
}

// Of a step of prompts, whose last tokens alone are asked for, and of one that
// decodes behind them: logits. With `all` the first asks for every token's.
std::vector<float> LastLogits(Model& model, std::span<const int32_t> ids,
                              bool all) {
  const std::vector<std::vector<int32_t>> blocks = {
      {4, 1}, {0, 5}, {3, 2}, {6}};
  constexpr int64_t kSizes[] = {90, 100, 120, 1};
  constexpr int64_t kWanted[] = {2, 0, 1, 1};
  const int64_t vocab = model.config().vocab_size;
  const auto cache = model.NewKvCache(7);
  std::vector<SequenceSlice> slices;
  int64_t rows = 0;
  for (int s = 0; s < 4; ++s) {
    slices.push_back({.token_ids = ids.subspan(30 * s, kSizes[s]),
                      .block_ids = blocks[s],
                      .logit_rows = all ? kSizes[s] : kWanted[s]});
    rows += slices.back().logit_rows;
  }
  std::vector<float> logits(rows * vocab);
  model.Forward(slices, *cache, logits);
  std::vector<float> wanted;
  auto end = logits.begin();
  for (int s = 0; s < 4; ++s) {
    end += slices[s].logit_rows * vocab;
    wanted.insert(wanted.end(), end - kWanted[s] * vocab, end);
    slices[s].token_ids = ids.subspan(s, 1);
    slices[s].first_position = kSizes[s];
    slices[s].logit_rows = 1;
  }
  logits.resize(4 * vocab);
  model.Forward(slices, *cache, logits);
  wanted.insert(wanted.end(), logits.begin(), logits.end());
  return wanted;
}

TEST_P(CudaModelTest, WhatNobodyReadsIsLeftOutOfTheLastLayer) {
  const auto model = Load(512);
  const std::vector<float> expected = LastLogits(*model, ids_, /*all=*/true);
  const std::vector<float> logits = LastLogits(*model, ids_, /*all=*/false);
  ASSERT_EQ(logits.size(), expected.size());
  EXPECT_EQ(std::memcmp(logits.data(), expected.data(),
                        logits.size() * sizeof(float)),
            0);
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

std::string Rendered(const Model& model) {
  std::string all;
  for (const auto& [name, value] : model.NumericsPlan()) {
    all += name + "=" + value + "\n";
  }
  return all;
}

// A model loaded for FAST, told to be deterministic, has the other's bits: what
// FAST adds is reached by its plan alone.
TEST_P(CudaModelTest, FastPlansAreTheirOwn) {
  const auto deterministic = Load(512);
  const auto fast = Load(512, /*deterministic=*/false);
  auto& model = static_cast<CudaModel&>(*fast);
  EXPECT_EQ(model.plan(), Plan::kFast);
  const std::string plan = Rendered(*fast);
  model.UsePlan(Plan::kFastAbsorbed);
  const std::string absorbed = Rendered(*fast);
  model.UsePlan(Plan::kDeterministic);
  EXPECT_EQ(Rendered(*fast), Rendered(*deterministic));
  EXPECT_NE(plan, absorbed);
  EXPECT_NE(plan, Rendered(*deterministic));
  EXPECT_NE(absorbed, Rendered(*deterministic));
  EXPECT_EQ(static_cast<CudaModel&>(*deterministic).fast(), nullptr);
  const std::vector<float> expected = Logits(*deterministic, 64);
  const std::vector<float> logits = Logits(*fast, 64);
  EXPECT_EQ(std::memcmp(logits.data(), expected.data(),
                        logits.size() * sizeof(float)),
            0);
}

// A prompt that is long enough for the MHA form, operation by operation.
TEST_P(CudaModelTest, FastIsNearDeterministic) {
  std::vector<int32_t> ids;
  for (int i = 0; i < 611; ++i) ids.push_back((i * 7919 + 13) % 1000);
  const auto fast = Load(1024, /*deterministic=*/false);
  auto& model = static_cast<CudaModel&>(*fast);
  model.UsePlan(Plan::kDeterministic);
  const Outputs expected = AllOutputs(*fast, ids);
  for (const Plan plan : {Plan::kFastAbsorbed, Plan::kFast}) {
    model.UsePlan(plan);
    const Outputs outputs = AllOutputs(*fast, ids);
    // Only the MHA form has no query in the latents' space.
    EXPECT_EQ(outputs.contains({0, "absorb_query"}),
              plan == Plan::kFastAbsorbed);
    for (const auto& [key, values] : outputs) {
      const auto& [layer, op] = key;
      // Of later layers, and of experts that were chosen otherwise, the
      // difference is what earlier roundings have become.
      if (layer != 0 || op == "hidden") continue;
      const double error = RelativeError(values, expected.at(key));
      std::printf("%s layer 0 %-14s %.2e\n",
                  plan == Plan::kFast ? "FAST" : "FAST, absorbed", op.c_str(),
                  error);
      EXPECT_LT(error, GetParam().Has("fp8") ? 0.1 : 2e-2) << op;
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
