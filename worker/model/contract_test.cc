// The numerics contract on a whole model: a position's logits have the same
// bits in any company, any chunking, on any number of threads.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "common/digest.h"
#include "worker/model/model.h"
#include "worker/model/testing/random_checkpoint.h"

namespace invar {
namespace {

// Long enough for a second split of the attention.
constexpr int64_t kLength = 300;
constexpr int64_t kBlocks = (kLength + kBlockTokens) / kBlockTokens;

ModelConfig Config(const std::string& name) {
  ModelConfig config = testing::TinyModelConfig();
  if (name == "fp8") config.quantization = testing::StaticFp8();
  if (name == "channel_fp8") {
    config.quantization = {.format = CheckpointFormat::kCompressedTensors,
                           .weights = WeightScaling::kChannel,
                           .inputs = InputScaling::kToken,
                           .kv_scales = true,
                           .ignored = {"re:.*lm_head$"}};
  }
  if (name == "v3_block_fp8") {
    // Heads and sizes that cut blocks.
    config.architecture = Architecture::kDeepseekV3;
    config.hidden_size = 144;
    config.intermediate_size = 272;
    config.kv_lora_rank = 144;
    config.qk_nope_head_dim = 80;
    config.router.scoring = cpu::RouterScoring::kSigmoid;
    config.router.method = cpu::RouterMethod::kNoauxTc;
    config.router.groups = 4;
    config.router.top_groups = 2;
    config.router.normalise = true;
    config.quantization = {.format = CheckpointFormat::kBlockFp8,
                           .weights = WeightScaling::kBlock,
                           .inputs = InputScaling::kGroup};
  }
  if (name == "q_lora_groups_tied") {
    config.q_lora_rank = 32;
    config.tie_word_embeddings = true;
    config.router.method = cpu::RouterMethod::kGroupLimitedGreedy;
    config.router.groups = 4;
    config.router.top_groups = 2;
    config.router.scaling_factor = 16.0f;
    config.rope_scaling = {.factor = 4,
                           .original_max_positions = 64,
                           .mscale = 0.707,
                           .mscale_all_dim = 0.707};
  }
  return config;
}

std::vector<int32_t> Ids(int64_t count, int64_t stride) {
  std::vector<int32_t> ids(count);
  for (int64_t i = 0; i < count; ++i) {
    ids[i] = static_cast<int32_t>((i * i * stride + 3 * i + stride) % 70);
  }
  return ids;
}

struct Setting {
  std::string model;
  KvDtype kv_dtype;
  // Of every position's logits, on any x86-64-v3 machine and by any compiler.
  // A change here is a change of bits: raise the operation's revision.
  std::string sha256;
};

class ContractTest : public ::testing::TestWithParam<Setting> {
 protected:
  std::unique_ptr<Model> Load(int threads, cpu::Isa isa = cpu::BestIsa()) {
    const std::string folder =
        ::testing::TempDir() + "/contract_" + GetParam().model;
    EXPECT_TRUE(testing::WriteRandomCheckpoint(folder, Config(GetParam().model),
                                               /*seed=*/7)
                    .ok());
    auto model = Model::Load({.path = folder,
                              .kv_dtype = GetParam().kv_dtype,
                              .threads = threads,
                              .isa = isa});
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }

  // Every position's logits, (ids, vocab), computed `chunk` tokens at a time.
  std::vector<float> Score(Model& model, const std::vector<int32_t>& ids,
                           int64_t chunk) {
    const auto cache = model.NewKvCache(kBlocks);
    std::vector<int32_t> blocks(kBlocks);
    std::iota(blocks.rbegin(), blocks.rend(), 0);
    std::vector<float> logits;
    const int64_t size = static_cast<int64_t>(ids.size());
    for (int64_t p = 0; p < size; p += chunk) {
      const int64_t count = std::min(chunk, size - p);
      const SequenceSlice slice = {
          .token_ids = std::span(ids).subspan(p, count),
          .first_position = p,
          .block_ids = blocks,
          .logit_rows = count};
      std::vector<float> rows(count * model.config().vocab_size);
      const auto health = model.Forward({&slice, 1}, *cache, rows);
      EXPECT_EQ(health, std::vector{SliceHealth::kFinite});
      logits.insert(logits.end(), rows.begin(), rows.end());
    }
    return logits;
  }
};

void ExpectSameBits(std::span<const float> a, std::span<const float> b) {
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size_bytes()), 0);
}

TEST_P(ContractTest, ChunksDecodeAndThreadsDoNotMoveABit) {
  const auto one = Load(1);
  const auto two = Load(2);
  const std::vector<int32_t> ids = Ids(kLength, 5);
  const std::vector<float> whole = Score(*one, ids, kLength);
  EXPECT_EQ(Sha256Hex({reinterpret_cast<const char*>(whole.data()),
                       whole.size() * sizeof(float)}),
            GetParam().sha256);
  for (const int64_t chunk : {1, 7, 64}) {
    ExpectSameBits(Score(*one, ids, chunk), whole);
  }
  for (const int64_t chunk : {int64_t{7}, kLength}) {
    ExpectSameBits(Score(*two, ids, chunk), whole);
  }
}

// What BestIsa() gives has the recorded digest by the test above.
TEST_P(ContractTest, NoInstructionSetMovesABit) {
  if (cpu::BestIsa() == cpu::Isa::kAvx2) GTEST_SKIP() << "no AVX-512 here";
  const std::vector<int32_t> ids = Ids(kLength, 5);
  const std::vector<float> narrow =
      Score(*Load(1, cpu::Isa::kAvx2), ids, kLength);
  for (const cpu::Isa isa : {cpu::Isa::kAvx512, cpu::Isa::kAvx512Bf16}) {
    if (isa > cpu::BestIsa()) continue;
    const auto wide = Load(2, isa);
    ExpectSameBits(Score(*wide, ids, kLength), narrow);
    ExpectSameBits(Score(*wide, ids, 7), narrow);
  }
}

TEST_P(ContractTest, StrangersInTheBatchDoNotMoveABit) {
  const auto model = Load(2);
  constexpr int64_t kSequences = 33;
  constexpr int64_t kPrompt = 70;
  const std::vector<int32_t> ids = Ids(kPrompt, 5);
  const int64_t vocab = model->config().vocab_size;
  const std::vector<float> alone = Score(*model, ids, kPrompt);
  const auto cache = model->NewKvCache(2 * kSequences);
  // Stale blocks hold what poisons.
  std::memset(cache->Block(0, 0), 0x7f,
              model->config().layers * cache->blocks() * kBlockTokens *
                  cache->row_bytes());
  std::vector<std::vector<int32_t>> strangers;
  std::vector<std::vector<int32_t>> tables;
  for (int64_t i = 0; i < kSequences; ++i) {
    strangers.push_back(Ids(1 + i * 4 % 67, i + 11));
    tables.push_back({static_cast<int32_t>(2 * kSequences - 1 - i),
                      static_cast<int32_t>(i)});
  }
  for (int64_t place = 0; place < kSequences; ++place) {
    // Ours is a prompt here and a decode of its last token there.
    const bool decode = place % 2 == 1;
    if (decode) {
      const SequenceSlice prompt = {
          .token_ids = std::span(ids).first(kPrompt - 1),
          .block_ids = tables[place]};
      model->Forward({&prompt, 1}, *cache, {});
    }
    std::vector<SequenceSlice> slices;
    int64_t row = 0;
    for (int64_t i = 0; i < kSequences; ++i) {
      if (i < place) row += i % 2;
      slices.push_back({.token_ids = strangers[i],
                        .block_ids = tables[i],
                        .logit_rows = i % 2});
    }
    slices[place] = {
        .token_ids = std::span(ids).subspan(decode ? kPrompt - 1 : 0),
        .first_position = decode ? kPrompt - 1 : 0,
        .block_ids = tables[place],
        .logit_rows = 1};
    int64_t rows = 0;
    for (const SequenceSlice& slice : slices) rows += slice.logit_rows;
    std::vector<float> logits(rows * vocab);
    const auto health = model->Forward(slices, *cache, logits);
    EXPECT_EQ(health[place], SliceHealth::kFinite);
    ExpectSameBits(std::span(logits).subspan(row * vocab, vocab),
                   std::span(alone).last(vocab));
  }
}

// Forty sequences decode: alone, in shares of a thread each, in shares of teams
// of threads, and on all threads at once.
TEST_P(ContractTest, TeamsOfThreadsDoNotMoveABit) {
  constexpr int64_t kSequences = 40;
  constexpr int64_t kPrompt = 12;
  std::vector<std::vector<int32_t>> ids;
  std::vector<int32_t> blocks(kSequences);
  std::iota(blocks.begin(), blocks.end(), 0);
  for (int64_t i = 0; i < kSequences; ++i) ids.push_back(Ids(kPrompt, i + 1));
  std::vector<float> alone;
  for (const int threads : {1, 2, 4, 6, 7}) {
    const auto model = Load(threads);
    const auto cache = model->NewKvCache(kSequences);
    std::vector<float> logits(kSequences * model->config().vocab_size);
    for (int64_t p = 0; p < kPrompt; ++p) {
      std::vector<SequenceSlice> slices;
      for (int64_t i = 0; i < kSequences; ++i) {
        slices.push_back({.token_ids = std::span(ids[i]).subspan(p, 1),
                          .first_position = p,
                          .block_ids = {&blocks[i], 1},
                          .logit_rows = 1});
      }
      model->Forward(slices, *cache, logits);
    }
    if (threads == 1) alone = logits;
    ExpectSameBits(logits, alone);
  }
}

std::string SettingName(const ::testing::TestParamInfo<Setting>& info) {
  const std::map<KvDtype, std::string> names = {{KvDtype::kFp8E5m2, "e5m2"},
                                                {KvDtype::kFp8E4m3, "e4m3"},
                                                {KvDtype::kBf16, "bf16"},
                                                {KvDtype::kFp32, "fp32"}};
  return info.param.model + "_" + names.at(info.param.kv_dtype);
}

INSTANTIATE_TEST_SUITE_P(
    Settings, ContractTest,
    ::testing::Values(Setting{"fp8", KvDtype::kFp8E5m2,
                              "a1b6ad7a3cffef31c844d9e873b3407d"
                              "fb10202f783797c096f4147f07338c5b"},
                      Setting{"fp8", KvDtype::kFp32,
                              "fd112c40e6cc80a18c3707388272981a"
                              "275db4d57228756dcd3142e0df6f3fa4"},
                      Setting{"plain", KvDtype::kFp8E4m3,
                              "52b9d3d1d0eb7ae0cad6dd00cc0abbae"
                              "127e0ee18eec3838106c38d34d197b92"},
                      Setting{"plain", KvDtype::kBf16,
                              "acc6bdf5b84f59e63efaa1fed94398f5"
                              "c3bf5cb5eba4802979b6d1634b657251"},
                      Setting{"q_lora_groups_tied", KvDtype::kFp8E5m2,
                              "3e5df92f38414dc79cc3ce712854548e"
                              "f9584d5dfbf71159f7d9223f6223695a"},
                      Setting{"q_lora_groups_tied", KvDtype::kFp32,
                              "621449fec16a7b3013e27f6bf668b236"
                              "f261dc9c62b8e745d3166a99ada1ff00"},
                      Setting{"channel_fp8", KvDtype::kFp8E4m3,
                              "a1f9a7047ab3959752347179aa20497c"
                              "2090fc4f02456e5d2fc98fdc4d56dc2c"},
                      Setting{"v3_block_fp8", KvDtype::kFp8E5m2,
                              "cfe6aef6296d0c1db965e3158cd0dadc"
                              "3df5cb00621274884ab2f76eb92084ce"}),
    SettingName);

// One token's embedding is infinite; only sequences that hold it suffer.
TEST(SliceHealthTest, NamesTheSliceWithNonFiniteValuesAndNoOther) {
  const std::string folder = ::testing::TempDir() + "/slice_health";
  const ModelConfig config = testing::TinyModelConfig();
  auto tensors = testing::RandomTensors(config, 3);
  for (testing::RawTensor& tensor : tensors) {
    if (tensor.name != "model.embed_tokens.weight") continue;
    // Row 9 becomes bf16 infinities.
    for (int64_t k = 0; k < config.hidden_size; ++k) {
      tensor.bytes.replace((9 * config.hidden_size + k) * 2, 2, "\x80\x7f");
    }
  }
  ASSERT_TRUE(testing::WriteCheckpoint(folder, config, tensors).ok());
  const auto model = Model::Load({.path = folder, .threads = 1});
  ASSERT_TRUE(model.ok()) << model.status();
  const auto cache = (*model)->NewKvCache(3);
  const std::vector<std::vector<int32_t>> ids = {{1, 2}, {3, 9, 4}, {5}};
  const std::vector<int32_t> blocks = {0, 1, 2};
  std::vector<SequenceSlice> slices;
  for (int i = 0; i < 3; ++i) {
    slices.push_back({.token_ids = ids[i], .block_ids = {&blocks[i], 1}});
  }
  EXPECT_EQ((*model)->Forward(slices, *cache, {}),
            (std::vector{SliceHealth::kFinite, SliceHealth::kNonFinite,
                         SliceHealth::kFinite}));
  // A later decode of the poisoned sequence has logits that are no numbers.
  const std::vector<int32_t> next = {6};
  const SequenceSlice decode = {.token_ids = next,
                                .first_position = 3,
                                .block_ids = {&blocks[1], 1},
                                .logit_rows = 1};
  std::vector<float> logits(config.vocab_size);
  EXPECT_EQ((*model)->Forward({&decode, 1}, *cache, logits),
            std::vector{SliceHealth::kNonFinite});
}

}  // namespace
}  // namespace invar
