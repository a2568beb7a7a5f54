// A checkpoint of a tiny model in a folder of its own, to damage and to load.
#ifndef INVAR_WORKER_MODEL_TESTING_LOAD_TEST_CASE_H_
#define INVAR_WORKER_MODEL_TESTING_LOAD_TEST_CASE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/model/model.h"
#include "worker/model/testing/random_checkpoint.h"

namespace invar::testing {

inline constexpr char kShard[] = "/model-00001-of-00002.safetensors";
inline constexpr char kIndex[] = "/model.safetensors.index.json";

inline constexpr char kQ[] = "model.layers.0.self_attn.q_proj.weight";
inline constexpr char kScale[] =
    "model.layers.1.mlp.experts.5.down_proj.input_scale";

class LoadTestCase : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = absl::StrCat(
        ::testing::TempDir(), "/load_", getpid(), "_",
        ::testing::UnitTest::GetInstance()->current_test_info()->name());
    config_.quantization = StaticFp8();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  absl::Status Load() {
    return Model::Load({.path = folder_, .threads = 1}).status();
  }

  // Writes the tensors after `change`, in one file.
  void WriteChanged(
      const std::function<void(std::vector<RawTensor>&)>& change) {
    auto tensors = RandomTensors(config_, 1);
    change(tensors);
    ASSERT_TRUE(WriteCheckpoint(folder_, config_, tensors).ok());
  }

  void WriteSharded() {
    ASSERT_TRUE(WriteRandomCheckpoint(folder_, config_, 1, 2).ok());
  }

  // Writes one file of a header and data as they are.
  void WriteRaw(const std::string& header, const std::string& data) {
    const uint64_t length = header.size();
    WriteSharded();
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    ASSERT_TRUE(WriteFile(folder_ + kShard, bytes + header + data).ok());
  }

  std::string Read(const std::string& file) {
    return ReadTextFile(folder_ + file).value();
  }

  void Write(const std::string& file, const std::string& bytes) {
    ASSERT_TRUE(WriteFile(folder_ + file, bytes).ok());
  }

  // The load fails with the code, and the message has all of the words.
  void ExpectRefused(absl::StatusCode code,
                     const std::vector<std::string>& words) {
    const absl::Status status = Load();
    EXPECT_EQ(status.code(), code) << status;
    for (const std::string& word : words) {
      EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(word));
    }
  }

  void ExpectInvalid(const std::vector<std::string>& words) {
    ExpectRefused(absl::StatusCode::kInvalidArgument, words);
  }

  std::string folder_;
  ModelConfig config_ = TinyModelConfig();
};

inline RawTensor& Find(std::vector<RawTensor>& tensors,
                       const std::string& name) {
  return *std::find_if(
      tensors.begin(), tensors.end(),
      [&name](const RawTensor& tensor) { return tensor.name == name; });
}

}  // namespace invar::testing

#endif  // INVAR_WORKER_MODEL_TESTING_LOAD_TEST_CASE_H_
