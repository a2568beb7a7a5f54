// A checkpoint's way onto a GPU: every byte arrives, and the host holds none.
#include "worker/model/cuda/device_store.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "worker/model/checkpoint/memory_needs.h"
#include "worker/model/cuda/cuda_model.h"
#include "worker/model/cuda/step_memory.h"
#include "worker/model/testing/large_checkpoint.h"
#include "worker/model/testing/random_checkpoint.h"
#include "worker/model/weights.h"

namespace invar::cuda {
namespace {

constexpr int64_t kMebibyte = int64_t{1} << 20;

class DeviceStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto device = UseDevice(0);
    if (!device.ok()) GTEST_SKIP() << device.status().message();
    folder_ = absl::StrCat(
        ::testing::TempDir(), "/device_store_", getpid(), "_",
        ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string folder_;
};

TEST_F(DeviceStoreTest, HasEveryByteOfTheMatrices) {
  ModelConfig config = invar::testing::EmbeddedModelConfig();
  config.quantization = invar::testing::StaticFp8();
  ASSERT_TRUE(
      invar::testing::WriteRandomCheckpoint(folder_, config, 3, 2).ok());
  const auto host = LoadChecked(folder_);
  ASSERT_TRUE(host.ok()) << host.status();
  DeviceStore store(config, 0);
  const auto stored =
      LoadChecked(folder_, {}, [&](const auto&) { return &store; });
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->checkpoint.digest(), host->checkpoint.digest());
  int matrices = 0;
  for (const TensorSpec& spec : ArchitectureTensors(config)) {
    const LoadedTensor& expected = host->checkpoint.tensor(spec.name);
    const LoadedTensor& tensor = stored->checkpoint.tensor(spec.name);
    ASSERT_EQ(tensor.bytes, expected.bytes);
    std::vector<std::byte> bytes(tensor.bytes);
    // From wherever it is.
    Check(
        cudaMemcpy(bytes.data(), tensor.data, tensor.bytes, cudaMemcpyDefault),
        "reading a tensor");
    EXPECT_EQ(std::memcmp(bytes.data(), expected.data, tensor.bytes), 0)
        << spec.name;
    cudaPointerAttributes attributes;
    Check(cudaPointerGetAttributes(&attributes, tensor.data), "asking");
    const bool on_device = attributes.type == cudaMemoryTypeDevice;
    const bool is_matrix = spec.shape.size() == 2 &&
                           spec.name.find("kv_b_proj") == std::string::npos &&
                           spec.name.find("mlp.gate.") == std::string::npos;
    EXPECT_EQ(on_device, is_matrix) << spec.name;
    matrices += on_device;
  }
  EXPECT_GT(matrices, 200);
}

int64_t ProcessBytes(const std::string& field) {
  std::ifstream file("/proc/self/status");
  for (std::string word; file >> word;) {
    int64_t kib = 0;
    if (word == field && file >> kib) return kib << 10;
  }
  return 0;
}

// 2.5 GB, whose largest tensor is 0.4 GB.
TEST_F(DeviceStoreTest, TheHostNeverHoldsTheWeights) {
  const ModelConfig config = invar::testing::V2LiteModelConfig(/*layers=*/2);
  ASSERT_TRUE(invar::testing::WriteLargeCheckpoint(folder_, config, 1).ok());
  const auto load = [&] {
    return CudaModel::Load({.path = folder_, .step_tokens = 64}, {});
  };
  std::ofstream("/proc/self/clear_refs") << 5;  // VmHWM becomes VmRSS
  const int64_t before = ProcessBytes("VmHWM:");
  const auto model = load();
  ASSERT_TRUE(model.ok()) << model.status();
  const int64_t peak = ProcessBytes("VmHWM:") - before;
  std::printf("the host's peak: %lld MiB\n",
              static_cast<long long>(peak / kMebibyte));
  EXPECT_LT(peak, 300 * kMebibyte);
}

int64_t FreeBytes() {
  size_t free = 0, total = 0;
  Check(cudaMemGetInfo(&free, &total), "asking");
  return static_cast<int64_t>(free);
}

// What StepMemory takes of the device: the median of five, since another
// process may take or free some at that moment.
int64_t StepBytes(const ModelConfig& config, const StepLimits& limits) {
  std::array<int64_t, 5> taken;
  for (int64_t& bytes : taken) {
    const int64_t before = FreeBytes();
    const auto memory = StepMemory::Allocate(config, limits);
    EXPECT_TRUE(memory.ok()) << memory.status();
    bytes = before - FreeBytes();
  }
  std::sort(taken.begin(), taken.end());
  return taken[2];
}

// What `invar inspect` says of a step's memory, against what is allocated.
TEST_F(DeviceStoreTest, StepsTakeWhatInspectSays) {
  const ModelConfig config = invar::testing::V2LiteModelConfig();
  for (const ServingLimits& limits :
       {ServingLimits{.context = 4096, .step_tokens = 512},
        ServingLimits{.context = 163840, .step_tokens = 512},
        ServingLimits{.context = 4096, .step_tokens = 8192}}) {
    const int64_t taken = StepBytes(
        config, {.tokens = limits.step_tokens,
                 .sequences = 256,
                 .logit_rows = std::min<int64_t>(256, limits.step_tokens),
                 .max_positions = limits.context});
    const StepNeeds needs = GpuStepNeeds(config, limits);
    const int64_t said = needs.activations + needs.logits;
    std::printf("context %lld, steps of %lld tokens: %lld MiB, said %lld\n",
                static_cast<long long>(limits.context),
                static_cast<long long>(limits.step_tokens),
                static_cast<long long>(taken / kMebibyte),
                static_cast<long long>(said / kMebibyte));
    // Allocations are rounded up, some 40 of them to 2 MiB.
    EXPECT_LT(taken, said + 100 * kMebibyte);
    EXPECT_GT(taken, said * 3 / 4);
  }
}

}  // namespace
}  // namespace invar::cuda
