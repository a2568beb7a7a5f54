#include "kernels/cuda/device.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "kernels/cuda/testing/gpu_test.h"

namespace invar::cuda::testing {
namespace {

constexpr int64_t kBytes = 1 << 20;

// Keeps the default stream busy until its next work is surely asked for.
void Delay(void*) {
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
}

class DeviceTest : public GpuTest {
 protected:
  // What another stream reads of `buffer` at once.
  std::vector<uint8_t> Read(const DeviceBuffer<uint8_t>& buffer) {
    const auto copy = *DeviceBuffer<uint8_t>::Allocate(kBytes, "a test");
    Check(cudaMemcpyAsync(copy.data(), buffer.data(), kBytes,
                          cudaMemcpyDeviceToDevice, stream().get()),
          "reading");
    stream().Synchronize();
    return copy.Download();
  }
};

TEST_F(DeviceTest, WhatIsFilledOrCopiedIsThereForEveryStream) {
  const auto buffer = Poisoned<uint8_t>(kBytes);
  Check(cudaLaunchHostFunc(cudaStreamLegacy, Delay, nullptr), "delaying");
  Check(FillOnDevice(buffer.data(), 0x11, kBytes), "filling");
  EXPECT_EQ(Read(buffer), std::vector<uint8_t>(kBytes, 0x11));
  const std::vector<uint8_t> values(kBytes, 0x22);
  Check(cudaLaunchHostFunc(cudaStreamLegacy, Delay, nullptr), "delaying");
  Check(CopyToDevice(buffer.data(), values.data(), kBytes), "copying");
  EXPECT_EQ(Read(buffer), values);
}

}  // namespace
}  // namespace invar::cuda::testing
