// Seeded mutants of a valid checkpoint: each is refused by the name of a file,
// and of the tensor where it has one, or loads to the same digest. Beside a
// manifest every one is refused. 10,000 with INVAR_FULL=1.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "worker/model/checkpoint/manifest.h"
#include "worker/model/testing/random_checkpoint.h"
#include "worker/model/weights.h"

namespace invar {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr char kFirst[] = "model-00001-of-00002.safetensors";
constexpr char kSecond[] = "model-00002-of-00002.safetensors";

// A checkpoint in memory: file name -> bytes.
using Files = std::map<std::string, std::string>;

struct Mutation {
  std::string what;
  std::string tensor = {};  // which every refusal names; empty: any or none
  bool of_weights = false;  // that a header cannot tell
};

// Changes a checkpoint in one way.
class Mutator {
 public:
  Mutator(Files& files, uint64_t seed) : files_(files), random_(seed) {}

  Mutation Apply() {
    shard_ = &files_[Draw(2) == 0 ? kFirst : kSecond];
    std::memcpy(&header_bytes_, shard_->data(), sizeof(header_bytes_));
    switch (Draw(13)) {
      case 0:
        FlipBit(*shard_, 0, 8 + header_bytes_);
        return {"a bit of a header"};
      case 1: {
        const std::string digits = "0129,:[]{}\"\xff";
        (*shard_)[8 + Draw(header_bytes_)] = digits[Draw(digits.size())];
        return {"a byte of a header"};
      }
      case 2:
        return Truncate();
      case 3:
        std::swap(files_[kFirst], files_[kSecond]);
        return {"swapped shards"};
      case 4:
        return ChangeShape();
      case 5:
        return ChangeDtype();
      case 6:
        return ChangeOffsets();
      case 7:
        return LoseTensor();
      case 8:
      case 9:
        return Lie();
      case 10: {
        const size_t at = FlipBit(*shard_, 8 + header_bytes_, shard_->size());
        return {"a bit of the weights", TensorAt(at), true};
      }
      case 11:
        return ShareBytes();
      default:
        FlipBit(files_[kConfigFile], 0, files_[kConfigFile].size());
        return {"a bit of config.json"};
    }
  }

 private:
  uint64_t Draw(uint64_t below) { return random_() % below; }

  size_t FlipBit(std::string& bytes, size_t begin, size_t end) {
    const size_t at = begin + Draw(end - begin);
    bytes[at] ^= static_cast<char>(1 << Draw(8));
    return at;
  }

  json Header() const { return json::parse(shard_->substr(8, header_bytes_)); }

  void SetHeader(const json& header) {
    const std::string text = header.dump();
    const uint64_t size = text.size();
    *shard_ = std::string(reinterpret_cast<const char*>(&size), sizeof(size)) +
              text + shard_->substr(8 + header_bytes_);
    header_bytes_ = size;
  }

  std::string AnyTensor(const json& header) {
    return std::next(header.begin(), Draw(header.size())).key();
  }

  std::string TensorAt(size_t at) const {
    const json header = Header();
    for (const auto& [name, entry] : header.items()) {
      if (at < 8 + header_bytes_ + entry["data_offsets"][1].get<size_t>() &&
          at >= 8 + header_bytes_ + entry["data_offsets"][0].get<size_t>()) {
        return name;
      }
    }
    return "";
  }

  Mutation Truncate() {
    std::string& file = std::next(files_.begin(), Draw(files_.size()))->second;
    file.resize(Draw(file.size()));
    return {"a truncated file"};
  }

  Mutation ChangeShape() {
    json header = Header();
    const std::string tensor = AnyTensor(header);
    json& shape = header[tensor]["shape"];
    switch (Draw(4)) {
      case 0:
        shape.insert(shape.begin(), 1);
        break;
      case 1:
        std::reverse(shape.begin(), shape.end());
        break;
      case 2:
        shape.push_back(Draw(2) == 0 ? 2 : INT64_MAX);
        break;
      default:  // the same size
        if (shape.size() == 2) {
          shape[0] = shape[0].get<int64_t>() * 2;
          shape[1] = shape[1].get<int64_t>() / 2;
        }
    }
    SetHeader(header);
    return {"a shape", tensor};
  }

  Mutation ChangeDtype() {
    json header = Header();
    const std::string tensor = AnyTensor(header);
    constexpr const char* kDtypes[] = {"F8_E5M2", "F8_E4M3", "BF16", "F16",
                                       "F32",     "U8",      "I16",  "BOOL",
                                       "F64",     "I32",     "NONE"};
    header[tensor]["dtype"] = kDtypes[Draw(std::size(kDtypes))];
    SetHeader(header);
    return {"a dtype", tensor};
  }

  // Where the data begins or ends; the shape stays.
  Mutation ChangeOffsets() {
    json header = Header();
    json& offset = header[AnyTensor(header)]["data_offsets"][Draw(2)];
    offset = offset.get<uint64_t>() + (Draw(2) == 0 ? 1 : -1);
    SetHeader(header);
    return {"an offset"};
  }

  // Without its name, or without its data too.
  Mutation LoseTensor() {
    json header = Header();
    const std::string tensor = AnyTensor(header);
    const json entry = header[tensor];
    header.erase(tensor);
    if (Draw(2) == 0) {
      SetHeader(header);
      return {"a tensor without its name"};
    }
    EraseBytes(entry["data_offsets"], header);
    SetHeader(header);
    if (Draw(2) == 0) {
      json index = json::parse(files_[kShardIndex]);
      index["weight_map"].erase(tensor);
      files_[kShardIndex] = index.dump();
    }
    return {"a missing tensor", tensor};
  }

  // One tensor's bytes go, and it points to another's of its size.
  Mutation ShareBytes() {
    json header = Header();
    const std::string tensor = AnyTensor(header);
    const json bytes = header[tensor]["data_offsets"];
    const auto size = [](const json& offsets) {
      return offsets[1].get<uint64_t>() - offsets[0].get<uint64_t>();
    };
    for (const auto& [name, other] : header.items()) {
      if (name == tensor || size(other["data_offsets"]) != size(bytes)) {
        continue;
      }
      EraseBytes(bytes, header);
      header[tensor]["data_offsets"] = header[name]["data_offsets"];
      break;
    }
    SetHeader(header);
    return {"two tensors of the same bytes"};
  }

  // Those between `offsets`, and no other tensor's.
  void EraseBytes(const json& offsets, json& header) {
    const auto begin = offsets[0].get<uint64_t>();
    const auto end = offsets[1].get<uint64_t>();
    for (auto& [name, other] : header.items()) {
      for (json& offset : other["data_offsets"]) {
        if (offset.get<uint64_t>() >= end) {
          offset = offset.get<uint64_t>() - (end - begin);
        }
      }
    }
    shard_->erase(8 + header_bytes_ + begin, end - begin);
  }

  Mutation Lie() {
    json index = json::parse(files_[kShardIndex]);
    json& map = index["weight_map"];
    std::string tensor = AnyTensor(map);
    switch (Draw(4)) {
      case 0:
        map[tensor] = map[tensor] == kFirst ? kSecond : kFirst;
        break;
      case 1:
        map[tensor] = "../model.safetensors";
        break;
      case 2:
        map.erase(tensor);
        break;
      default:
        tensor += "_2";
        map[tensor] = kFirst;
    }
    files_[kShardIndex] = index.dump();
    return {"a lying index", tensor};
  }

  Files& files_;
  std::mt19937_64 random_;
  std::string* shard_ = nullptr;
  uint64_t header_bytes_ = 0;
};

class MutantsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    // Of this process alone: builds with other sanitizers may run beside it.
    folder_ = absl::StrCat(::testing::TempDir(), "/mutants_", getpid());
    std::filesystem::remove_all(folder_);
    ModelConfig config = testing::TinyModelConfig();
    config.quantization = testing::StaticFp8();
    ASSERT_TRUE(testing::WriteRandomCheckpoint(folder_, config, 1, 2).ok());
    Write("tokenizer.json", "{}");
    for (const std::string name :
         {kConfigFile, kShardIndex, kFirst, kSecond, "tokenizer.json"}) {
      valid_[name] = ReadTextFile(folder_ + "/" + name).value();
      ASSERT_LE(valid_[name].size(), 64u << 10) << name;
    }
    const auto manifest = MakeManifest(folder_);
    ASSERT_TRUE(manifest.ok()) << manifest.status();
    manifest_ = ManifestText(*manifest);
    digest_ = manifest->weights_digest;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& name, const std::string& bytes) {
    ASSERT_TRUE(testing::WriteFile(folder_ + "/" + name, bytes).ok());
  }

  absl::StatusOr<std::string> Digest() {
    const auto model = LoadChecked(folder_, {.threads = 1});
    if (!model.ok()) return model.status();
    return model->checkpoint.digest();
  }

  // The message names a file of the checkpoint, and the tensor.
  void ExpectNames(const absl::Status& refusal, const std::string& tensor) {
    const std::string message(refusal.message());
    EXPECT_TRUE(std::any_of(valid_.begin(), valid_.end(), [&](const auto& f) {
      return absl::StrContains(message, folder_ + "/" + f.first);
    })) << message;
    EXPECT_THAT(message, HasSubstr(tensor));
    // What is wrong with no tensor is wrong with a file's own text.
    if (!absl::StrContains(message, kConfigFile)) {
      EXPECT_TRUE(absl::StrContains(message, "tensor") ||
                  absl::StrContains(message, "not valid JSON") ||
                  absl::StrContains(message, "its header") ||
                  absl::StrContains(message, "is no safetensors file") ||
                  absl::StrContains(message, "weight_map"))
          << message;
    }
    EXPECT_LT(message.size(), 1000u) << message;
  }

  std::string folder_;
  Files valid_;
  std::string manifest_;
  std::string digest_;
};

TEST_F(MutantsTest, AreRefusedOrTheSame) {
  const int mutants = std::getenv("INVAR_FULL") != nullptr ? 10'000 : 600;
  const std::string manifest_path = folder_ + "/" + kManifest;
  int refused = 0;
  int same = 0;
  for (int seed = 0; seed < mutants; ++seed) {
    Files files = valid_;
    const Mutation mutation = Mutator(files, seed).Apply();
    SCOPED_TRACE(
        absl::StrCat("seed ", seed, ": ", mutation.what, " ", mutation.tensor));
    for (const auto& [name, bytes] : files) {
      if (bytes != valid_[name]) Write(name, bytes);
    }
    const auto digest = Digest();
    if (!digest.ok()) {
      ++refused;
      ExpectNames(digest.status(), mutation.tensor);
    } else if (mutation.of_weights) {
      EXPECT_NE(*digest, digest_);
    } else {
      ++same;
      EXPECT_EQ(*digest, digest_);
    }
    Write(kManifest, manifest_);
    const auto pinned = Digest();
    EXPECT_EQ(pinned.ok(), files == valid_);
    if (mutation.of_weights) {
      EXPECT_THAT(std::string(pinned.status().message()),
                  HasSubstr("tensor " + mutation.tensor));
    }
    std::filesystem::remove(manifest_path);
    for (const auto& [name, bytes] : files) {
      if (bytes != valid_[name]) Write(name, valid_[name]);
    }
  }
  RecordProperty("refused", refused);
  RecordProperty("same", same);
  std::printf("%d mutants: %d refused, %d loaded to the same digest\n", mutants,
              refused, same);
  EXPECT_GT(refused, mutants * 7 / 10);
}

// Each digest of the manifest counts to its last digit.
TEST_F(MutantsTest, EveryDigitOfAManifestCounts) {
  Write(kManifest, manifest_);
  ASSERT_EQ(Digest().value(), digest_);
  const json valid = json::parse(manifest_);
  std::vector<json::json_pointer> digests = {
      json::json_pointer("/weights_digest")};
  for (const std::string field : {"files", "tensors"}) {
    for (const auto& [name, digest] : valid[field].items()) {
      digests.push_back(json::json_pointer("/" + field) / name);
    }
  }
  ASSERT_GT(digests.size(), 60u);
  for (const json::json_pointer& digest : digests) {
    for (const size_t digit : {0, 32, 63}) {
      json changed = valid;
      std::string text = changed[digest];
      text[digit] = text[digit] == '7' ? '8' : '7';
      changed[digest] = text;
      Write(kManifest, changed.dump());
      const auto refused = Digest();
      EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument)
          << digest << " " << digit;
      EXPECT_THAT(std::string(refused.status().message()), HasSubstr(text));
    }
  }
}

TEST_F(MutantsTest, AManifestListsExactlyWhatIsThere) {
  const json valid = json::parse(manifest_);
  const auto expect_refused = [this](const json& manifest,
                                     const std::string& word) {
    Write(kManifest, manifest.dump());
    EXPECT_THAT(std::string(Digest().status().message()),
                AllOf(HasSubstr(kManifest), HasSubstr(word)));
  };
  for (const auto& [name, digest] : valid["files"].items()) {
    json less = valid;
    less["files"].erase(name);
    expect_refused(less, name);
  }
  json changed = valid;
  changed["tensors"].erase("lm_head.weight");
  expect_refused(changed, "lm_head.weight");
  changed = valid;
  changed["tensors"]["other"] = valid["weights_digest"];
  expect_refused(changed, "tensors, but the checkpoint has");
  changed = valid;
  changed["files"]["other.json"] = valid["weights_digest"];
  expect_refused(changed, "other.json");
  changed = valid;
  changed["files"][kConfigFile] = "0";
  expect_refused(changed, "no SHA-256");
  changed = valid;
  changed["more"] = 1;
  expect_refused(changed, "is not an object of");
  expect_refused(json("?"), "is not an object of");
}

}  // namespace
}  // namespace invar
