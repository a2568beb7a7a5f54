// Runs the GPU tests. Exit code 77: there is no GPU, so those that need one
// were skipped.
#include <gtest/gtest.h>

#include "kernels/cuda/device.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const auto device = invar::cuda::UseDevice(0);
  if (device.ok()) {
    std::printf("%s, CUDA %s\n", device->name.c_str(), device->driver.c_str());
  }
  const int failed = RUN_ALL_TESTS();
  return failed == 0 && !device.ok() ? 77 : failed;
}
