// What a worker says of a machine that cannot compute. Needs no GPU.
#include "kernels/cuda/device_choice.h"

#include <gtest/gtest.h>

namespace invar::cuda {
namespace {

const GpuModel kH100 = {"NVIDIA H100 80GB HBM3", 9, 0};

// What is said of a machine; empty where it will do.
std::string Said(const MachineFacts& facts) {
  const absl::Status status = CheckMachine(facts);
  EXPECT_TRUE(status.ok() || absl::IsFailedPrecondition(status)) << status;
  EXPECT_EQ(status.message().find('\n'), absl::string_view::npos) << status;
  return std::string(status.message());
}

TEST(DeviceChoiceTest, NoDriver) {
  EXPECT_EQ(Said({.driver = 0, .runtime = 13000}),
            "no NVIDIA driver is installed; use --device cpu");
}

TEST(DeviceChoiceTest, AnOldDriver) {
  EXPECT_EQ(Said({.driver = 12080, .runtime = 13020}),
            "the NVIDIA driver runs CUDA 12.8; this build needs 13.0: install "
            "a newer one");
  // Also where GPUs are known: none of them can be used.
  EXPECT_EQ(Said({.driver = 12990,
                  .runtime = 13000,
                  .index = 3,
                  .gpus = 1,
                  .gpu = kH100}),
            "the NVIDIA driver runs CUDA 12.99; this build needs 13.0: "
            "install a newer one");
}

TEST(DeviceChoiceTest, ADriverOfTheSameMajorVersionWillDo) {
  EXPECT_EQ(Said({.driver = 13000, .runtime = 13020}), "");
  EXPECT_EQ(Said({.driver = 14000, .runtime = 13020}), "");
}

TEST(DeviceChoiceTest, NoGpuOfThatIndex) {
  MachineFacts facts = {.driver = 13000, .runtime = 13000, .index = 0};
  facts.gpus = 0;
  EXPECT_EQ(Said(facts),
            "there is no cuda:0; this machine has 0 GPUs: use --device cpu");
  facts.index = 1;
  facts.gpus = 1;
  EXPECT_EQ(Said(facts),
            "there is no cuda:1; this machine has 1 GPU: use cuda:0, or "
            "--device cpu");
  facts.index = 99;
  facts.gpus = 8;
  EXPECT_EQ(Said(facts),
            "there is no cuda:99; this machine has 8 GPUs: use one of cuda:0 "
            "to cuda:7, or --device cpu");
  facts.index = -1;
  EXPECT_EQ(Said(facts),
            "there is no cuda:-1; this machine has 8 GPUs: use one of cuda:0 "
            "to cuda:7, or --device cpu");
  facts.index = 7;
  EXPECT_EQ(Said(facts), "");
}

TEST(DeviceChoiceTest, AnotherArchitecture) {
  MachineFacts facts = {.driver = 13000, .runtime = 13000, .index = 2};
  facts.gpus = 4;
  facts.gpu = {"NVIDIA A100-SXM4-80GB", 8, 0};
  EXPECT_EQ(Said(facts),
            "cuda:2 is NVIDIA A100-SXM4-80GB of compute capability 8.0; this "
            "build is for 9.0 (H100, H200): use one of those, or --device cpu");
  // A newer one has other bits, and none of this machine code.
  facts.gpu = {"NVIDIA B200", 10, 0};
  EXPECT_EQ(Said(facts),
            "cuda:2 is NVIDIA B200 of compute capability 10.0; this build is "
            "for 9.0 (H100, H200): use one of those, or --device cpu");
  facts.gpu = kH100;
  EXPECT_EQ(Said(facts), "");
}

}  // namespace
}  // namespace invar::cuda
