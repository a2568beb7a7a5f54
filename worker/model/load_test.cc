// What the loader refuses, and how it says so.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <list>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/model/checkpoint/architecture.h"
#include "worker/model/checkpoint/checkpoint.h"
#include "worker/model/model.h"
#include "worker/model/testing/random_checkpoint.h"
#include "worker/model/weights.h"

namespace invar {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::RawTensor;

constexpr char kShard[] = "/model-00001-of-00002.safetensors";
constexpr char kIndex[] = "/model.safetensors.index.json";

class LoadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = absl::StrCat(
        ::testing::TempDir(), "/load_", getpid(), "_",
        ::testing::UnitTest::GetInstance()->current_test_info()->name());
    config_.quantization = testing::StaticFp8();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  absl::Status Load() {
    return Model::Load({.path = folder_, .threads = 1}).status();
  }

  // Writes the tensors after `change`, in one file.
  void WriteChanged(
      const std::function<void(std::vector<RawTensor>&)>& change) {
    auto tensors = testing::RandomTensors(config_, 1);
    change(tensors);
    ASSERT_TRUE(testing::WriteCheckpoint(folder_, config_, tensors).ok());
  }

  void WriteSharded() {
    ASSERT_TRUE(testing::WriteRandomCheckpoint(folder_, config_, 1, 2).ok());
  }

  // Writes one file of a header and data as they are.
  void WriteRaw(const std::string& header, const std::string& data) {
    const uint64_t length = header.size();
    WriteSharded();
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    ASSERT_TRUE(
        testing::WriteFile(folder_ + kShard, bytes + header + data).ok());
  }

  std::string Read(const std::string& file) {
    return ReadTextFile(folder_ + file).value();
  }

  void Write(const std::string& file, const std::string& bytes) {
    ASSERT_TRUE(testing::WriteFile(folder_ + file, bytes).ok());
  }

  // The load fails with the code, and the message has all of the words.
  void ExpectRefused(absl::StatusCode code,
                     const std::vector<std::string>& words) {
    const absl::Status status = Load();
    EXPECT_EQ(status.code(), code) << status;
    for (const std::string& word : words) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(word));
    }
  }

  void ExpectInvalid(const std::vector<std::string>& words) {
    ExpectRefused(absl::StatusCode::kInvalidArgument, words);
  }

  std::string folder_;
  ModelConfig config_ = testing::TinyModelConfig();
};

RawTensor& Find(std::vector<RawTensor>& tensors, const std::string& name) {
  return *std::find_if(
      tensors.begin(), tensors.end(),
      [&name](const RawTensor& tensor) { return tensor.name == name; });
}

// From the page cache.
void DropPages(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(descriptor, 0);
  EXPECT_EQ(fsync(descriptor), 0);
  EXPECT_EQ(posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED), 0);
  close(descriptor);
}

constexpr char kQ[] = "model.layers.0.self_attn.q_proj.weight";
constexpr char kScale[] = "model.layers.1.mlp.experts.5.down_proj.input_scale";

TEST_F(LoadTest, DigestAndAnswersDoNotDependOnSharding) {
  WriteSharded();
  const auto sharded = Model::Load({.path = folder_, .threads = 1});
  ASSERT_TRUE(sharded.ok()) << sharded.status();
  std::filesystem::remove_all(folder_);
  WriteChanged([](auto& tensors) {
    std::reverse(tensors.begin(), tensors.end());
    Find(tensors, kScale).shape = {};
  });
  const auto single = Model::Load({.path = folder_, .threads = 1});
  ASSERT_TRUE(single.ok()) << single.status();
  EXPECT_EQ((*sharded)->weights_digest(), (*single)->weights_digest());
  WriteChanged([](auto& tensors) { Find(tensors, kQ).bytes[3] ^= 1; });
  const auto changed = Model::Load({.path = folder_, .threads = 1});
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_NE((*changed)->weights_digest(), (*single)->weights_digest());
}

// Tensors that are read in blocks, from the page cache and past it: each byte
// comes to its place, at any offset in the file, with zeros behind.
TEST_F(LoadTest, LargeTensorsAreReadWhole) {
  config_.vocab_size = 40'001;  // embedding and lm_head: 2.56 MB
  for (const int64_t shift : {0, 2, 8, 66, 4094}) {
    const auto tensors = testing::RandomTensors(config_, 1);
    std::vector<RawTensor> shifted = tensors;
    shifted.insert(shifted.begin(),
                   {"shift", "BF16", {shift / 2}, std::string(shift, 'x')});
    ASSERT_TRUE(testing::WriteCheckpoint(folder_, config_, shifted).ok());
    auto expected = ArchitectureTensors(config_);
    expected.push_back({"shift", {shift / 2}});
    for (const bool cached : {true, false}) {
      SCOPED_TRACE(absl::StrCat(shift, cached ? " cached" : ""));
      if (!cached) DropPages(folder_ + "/model.safetensors");
      const auto checkpoint = Checkpoint::Load(folder_, expected);
      ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
      for (const RawTensor& tensor : tensors) {
        const LoadedTensor& loaded = checkpoint->tensor(tensor.name);
        const char* bytes = reinterpret_cast<const char*>(loaded.data);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes) % 64, 0u) << tensor.name;
        ASSERT_EQ(static_cast<size_t>(loaded.bytes), tensor.bytes.size());
        EXPECT_EQ(std::memcmp(bytes, tensor.bytes.data(), loaded.bytes), 0)
            << tensor.name;
        EXPECT_EQ(std::count(bytes + loaded.bytes,
                             bytes + (loaded.bytes + 63) / 64 * 64, '\0'),
                  (64 - loaded.bytes % 64) % 64)
            << tensor.name;
      }
    }
  }
}

TEST_F(LoadTest, AcceptsScalesOfShapeOne) {
  WriteChanged([](auto& tensors) { Find(tensors, kScale).shape = {1}; });
  EXPECT_TRUE(Load().ok()) << Load();
}

TEST_F(LoadTest, MissingFolderAndFiles) {
  ExpectRefused(absl::StatusCode::kNotFound, {"config.json"});
  WriteSharded();
  std::filesystem::remove(folder_ + kShard);
  ExpectRefused(absl::StatusCode::kNotFound, {kShard});
  std::filesystem::remove(folder_ + kIndex);
  ExpectRefused(absl::StatusCode::kNotFound, {"neither"});
}

TEST_F(LoadTest, TruncatedFile) {
  WriteSharded();
  const std::string whole = Read(kShard);
  for (const size_t size :
       {size_t{0}, size_t{7}, size_t{100}, whole.size() - 1}) {
    Write(kShard, whole.substr(0, size));
    ExpectInvalid({kShard});
  }
  Write(kShard, whole + "x");
  ExpectInvalid({kShard, "belong to no tensor"});
}

TEST_F(LoadTest, LyingHeader) {
  WriteRaw("{}", "");
  std::string bytes = Read(kShard);
  std::memset(bytes.data(), 0xff, 8);
  Write(kShard, bytes);
  ExpectInvalid({"claims 18446744073709551615 bytes"});
  WriteRaw("[1, 2", "");
  ExpectInvalid({"its header: not valid JSON"});
  WriteRaw(R"({"a": 3})", "");
  ExpectInvalid({"tensor a is not an object"});
  WriteRaw(R"({"a": {"dtype": "F7", "shape": [1], "data_offsets": [0, 1]}})",
           "x");
  ExpectInvalid({"tensor a", "unknown dtype \"F7\""});
  WriteRaw(R"({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 1]}})",
           "x");
  ExpectInvalid({"tensor a", "takes 2"});
  WriteRaw(R"({"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}})",
           "x");
  ExpectInvalid({"tensor a", "impossible shape"});
  WriteRaw(R"({"a": {"dtype": "F64", "shape": [4294967296, 4294967296],
               "data_offsets": [0, 1]}})",
           "x");
  ExpectInvalid({"tensor a", "impossible shape"});
  WriteRaw(R"({"a": {"dtype": "U8", "shape": [1],
               "data_offsets": [18446744073709551615, 0]}})",
           "x");
  ExpectInvalid({"tensor a", "outside the file"});
  WriteRaw(R"({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}})",
           "x");
  ExpectInvalid({"tensor a", "outside the file"});
}

TEST_F(LoadTest, OverlapAndGap) {
  WriteRaw(R"({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
               "b": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}})",
           "xyz");
  ExpectInvalid({"tensor b", "inside the one before"});
  WriteRaw(R"({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
               "b": {"dtype": "U8", "shape": [1], "data_offsets": [2, 3]}})",
           "xyz");
  ExpectInvalid({"tensor b", "after a gap"});
}

// No gap and no rest, each of the length of its shape: but one tensor's values
// are another's.
TEST_F(LoadTest, SharedBytes) {
  WriteRaw(R"({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
               "b": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
               "c": {"dtype": "U8", "shape": [1], "data_offsets": [2, 3]}})",
           "xyz");
  ExpectInvalid({"tensor b", "inside the one before"});
}

TEST_F(LoadTest, SwappedShards) {
  WriteSharded();
  const std::string first = Read(kShard);
  const std::string second = "/model-00002-of-00002.safetensors";
  Write(kShard, Read(second));
  Write(second, first);
  ExpectInvalid({kIndex + 1, "says that tensor", "does not have it"});
}

TEST_F(LoadTest, LyingIndex) {
  WriteSharded();
  const std::string index = Read(kIndex);
  const std::string first = "model-00001-of-00002";
  std::string moved = index;
  moved.replace(moved.find(first), first.size(), "model-00002-of-00002");
  Write(kIndex, moved);
  ExpectInvalid({"says that tensor", "does not have it"});
  std::string renamed = index;
  renamed.replace(renamed.find("lm_head"), 7, "lm_tail");
  Write(kIndex, renamed);
  ExpectInvalid({"lm_tail"});
  Write(kIndex, R"({"weight_map": {"a": "../model.safetensors"}})");
  ExpectInvalid({"no file name"});
  Write(kIndex, "{}");
  ExpectInvalid({"weight_map"});
  Write("/model.safetensors", "");
  ExpectInvalid({"has both"});
}

TEST_F(LoadTest, MissingLeftOverOrMisshapenTensor) {
  WriteChanged([](auto& tensors) { Find(tensors, kQ).name = "model.other"; });
  ExpectInvalid({kQ, "is missing"});
  WriteChanged([](auto& tensors) {
    tensors.push_back({"model.other", "U8", {1}, "x"});
  });
  ExpectInvalid({"model.other", "no place"});
  WriteChanged([](auto& tensors) {
    std::swap(Find(tensors, kQ).shape[0], Find(tensors, kQ).shape[1]);
  });
  ExpectInvalid({kQ, "F8_E4M3 [32, 96]", "F8_E4M3 [96, 32]"});
  WriteChanged([](auto& tensors) { Find(tensors, kQ).dtype = "F8_E5M2"; });
  ExpectInvalid({kQ, "F8_E5M2"});
  // A quantised weight where the config knows of no quantisation.
  config_.quantization = Quantization();
  WriteChanged([](auto& tensors) {
    Find(tensors, kQ).dtype = "F8_E4M3";
    Find(tensors, kQ).bytes.resize(96 * 32);
  });
  ExpectInvalid({kQ, "BF16, F16 or F32"});
}

TEST_F(LoadTest, TransposedBlockScales) {
  config_.quantization = {.format = CheckpointFormat::kBlockFp8,
                          .weights = WeightScaling::kBlock,
                          .inputs = InputScaling::kGroup,
                          .ignored = {"lm_head"}};
  config_.intermediate_size = 256;
  WriteChanged([](auto&) {});
  ASSERT_TRUE(Load().ok()) << Load();
  const std::string scales = "model.layers.0.mlp.gate_proj.weight_scale_inv";
  WriteChanged([&scales](auto& tensors) {
    RawTensor& tensor = Find(tensors, scales);
    ASSERT_EQ(tensor.shape, (std::vector<int64_t>{2, 1}));
    std::swap(tensor.shape[0], tensor.shape[1]);
  });
  ExpectInvalid({scales, "F32 [1, 2]", "[2, 1]"});
}

TEST_F(LoadTest, BadScalesAndCodes) {
  for (const float scale :
       {0.0f, -1.0f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    WriteChanged([scale](auto& tensors) {
      std::memcpy(Find(tensors, kScale).bytes.data(), &scale, 4);
    });
    ExpectInvalid({kScale, "finite and above 0"});
  }
  WriteChanged([](auto& tensors) { Find(tensors, kQ).bytes[5] = '\xff'; });
  ExpectInvalid({kQ, "not numbers"});
}

// Damage anywhere in the files ends in an error or in a model, never in a
// crash; run under sanitizers it says more.
TEST_F(LoadTest, RandomDamageIsSurvived) {
  WriteSharded();
  std::mt19937_64 random(1);
  for (const std::string file : {kShard, kIndex, "/config.json"}) {
    const std::string whole = Read(file);
    // Of a shard, the header: data may be anything.
    uint64_t header;
    std::memcpy(&header, whole.data(), sizeof(header));
    const size_t reach = file == kShard ? header + 8 : whole.size();
    int refused = 0;
    for (int i = 0; i < 150; ++i) {
      std::string damaged = whole;
      for (uint64_t hits = 1 + random() % 3; hits > 0; --hits) {
        const std::string digits = "0129,:[]{}\"\xff";
        damaged[random() % reach] = digits[random() % digits.size()];
      }
      Write(file, damaged);
      refused += Load().ok() ? 0 : 1;
    }
    EXPECT_GT(refused, 100) << file;
    Write(file, whole);
  }
  EXPECT_TRUE(Load().ok());
}

TEST_F(LoadTest, ConfigFieldsAreChecked) {
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

TEST_F(LoadTest, QuantisationsThatAreNotSupportedAreNamed) {
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

TEST_F(LoadTest, IgnoredModulesByNameParentAndPattern) {
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
TEST_F(LoadTest, CompressionConfigIsAQuantizationConfig) {
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
TEST_F(LoadTest, ExpertsShareTheLargestInputScale) {
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

// In the host's memory, what a GPU's is in the product.
class HostStore : public TensorStore {
 public:
  // In what it fails; empty: in nothing.
  explicit HostStore(std::string failure = "") : failure_(failure) {}

  absl::StatusOr<std::vector<std::byte*>> Place(
      const std::vector<TensorHeader>& tensors) override {
    if (failure_ == "place") return absl::ResourceExhaustedError("no place");
    std::vector<std::byte*> places;
    for (const TensorHeader& header : tensors) {
      const bool stored = header.spec->shape.size() == 2 &&
                          header.spec->kind != TensorKind::kScale;
      if (stored) memory_.emplace_back(header.tensor->bytes);
      places.push_back(stored ? memory_.back().data() : nullptr);
    }
    return places;
  }

  absl::StatusOr<std::unique_ptr<Copier>> NewCopier() override {
    if (failure_ == "copier") return absl::ResourceExhaustedError("no copier");
    return std::make_unique<HostCopier>(failure_);
  }

  bool Has(const std::byte* data) const {
    return std::any_of(memory_.begin(), memory_.end(),
                       [&](const auto& m) { return m.data() == data; });
  }

 private:
  // Copies when it must: what is written to a room too early is seen.
  class HostCopier : public Copier {
   public:
    explicit HostCopier(const std::string& failure) : failure_(failure) {}
    ~HostCopier() override {
      for (const auto& room : rooms_) std::free(room);
    }
    absl::StatusOr<char*> Room(int64_t bytes) override {
      at_ = (at_ + 1) % 2;
      Arrive(at_);
      std::free(rooms_[at_]);
      rooms_[at_] = static_cast<char*>(
          std::aligned_alloc(FileReader::kBlockBytes, bytes));
      return rooms_[at_];
    }
    absl::Status Copy(const char* from, int64_t bytes, std::byte* to) override {
      if (failure_ == "copy") return absl::InternalError("no copy");
      copies_[at_] = {from, bytes, to};
      return absl::OkStatus();
    }
    absl::Status Finish() override {
      if (failure_ == "finish") return absl::InternalError("no finish");
      Arrive(0);
      Arrive(1);
      return absl::OkStatus();
    }

   private:
    struct Pending {
      const char* from = nullptr;
      int64_t bytes = 0;
      std::byte* to = nullptr;
    };
    void Arrive(int at) {
      Pending& copy = copies_[at];
      if (copy.bytes > 0) std::memcpy(copy.to, copy.from, copy.bytes);
      copy = {};
    }

    const std::string failure_;
    std::array<char*, 2> rooms_ = {};
    std::array<Pending, 2> copies_;
    int at_ = 0;
  };

  const std::string failure_;
  std::list<std::vector<std::byte>> memory_;
};

// At any offset in the file, from the page cache and past it; the digest does
// not tell where the tensors lie.
TEST_F(LoadTest, AStoreGetsEveryByte) {
  config_.vocab_size = 40'001;  // embedding and lm_head: 2.56 MB
  for (const int64_t shift : {0, 2, 66, 4094}) {
    std::vector<RawTensor> tensors = testing::RandomTensors(config_, 1);
    tensors.insert(tensors.begin(),
                   {"shift", "BF16", {shift / 2}, std::string(shift, 'x')});
    ASSERT_TRUE(testing::WriteCheckpoint(folder_, config_, tensors).ok());
    auto expected = ArchitectureTensors(config_);
    expected.push_back({"shift", {shift / 2}});
    const auto plain = Checkpoint::Load(folder_, expected);
    ASSERT_TRUE(plain.ok()) << plain.status();
    for (const bool cached : {true, false}) {
      SCOPED_TRACE(absl::StrCat(shift, cached ? " cached" : ""));
      if (!cached) DropPages(folder_ + "/model.safetensors");
      HostStore store;
      const auto stored =
          Checkpoint::Load(folder_, expected, {.store = &store});
      ASSERT_TRUE(stored.ok()) << stored.status();
      EXPECT_EQ(stored->digest(), plain->digest());
      EXPECT_EQ(stored->bytes(), plain->bytes());
      int matrices = 0;
      for (const TensorSpec& spec : expected) {
        const LoadedTensor& loaded = stored->tensor(spec.name);
        const LoadedTensor& same = plain->tensor(spec.name);
        ASSERT_EQ(loaded.bytes, same.bytes) << spec.name;
        EXPECT_EQ(std::memcmp(loaded.data, same.data, same.bytes), 0)
            << spec.name;
        matrices += store.Has(loaded.data);
      }
      EXPECT_GT(matrices, 30);
    }
  }
}

TEST_F(LoadTest, AStoreThatFailsIsNoModel) {
  WriteSharded();
  for (const std::string failure : {"place", "copier", "copy", "finish"}) {
    HostStore store(failure);
    const auto refused = LoadChecked(folder_, {.threads = 2},
                                     [&](const auto&) { return &store; });
    EXPECT_THAT(std::string(refused.status().message()),
                HasSubstr("no " + failure));
  }
  // Nor is what is damaged, though its bytes have gone there.
  std::filesystem::remove_all(folder_);
  WriteChanged([](auto& tensors) { Find(tensors, kQ).bytes[5] = '\xff'; });
  HostStore store;
  const auto refused =
      LoadChecked(folder_, {}, [&](const auto&) { return &store; });
  EXPECT_THAT(std::string(refused.status().message()),
              AllOf(HasSubstr(kQ), HasSubstr("not numbers")));
}

TEST_F(LoadTest, EachProblemOfAConfigIsListed) {
  std::string text = testing::ConfigJson(config_);
  for (const auto& [from, to] :
       {std::pair("\"silu\"", "\"gelu\""), std::pair("\"fp8\"", "\"awq\"")}) {
    text.replace(text.find(from), std::string(from).size(), to);
  }
  std::vector<absl::Status> problems;
  EXPECT_FALSE(ParseModelConfig(text, "config.json", &problems).ok());
  EXPECT_EQ(problems.size(), 2u);
}

TEST_F(LoadTest, RopeParametersAndRopeScalingMeanTheSame) {
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
