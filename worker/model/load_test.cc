// What the loader refuses, and how it says so.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "worker/model/model.h"
#include "worker/model/testing/load_test_case.h"

namespace invar {
namespace {

using testing::Find;
using testing::kIndex;
using testing::kQ;
using testing::kScale;
using testing::kShard;
using testing::RawTensor;

class LoadTest : public testing::LoadTestCase {};

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

}  // namespace
}  // namespace invar
