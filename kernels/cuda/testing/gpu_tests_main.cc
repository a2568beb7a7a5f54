// Runs the GPU tests. Exit code 77: all of them were skipped.
#include <gtest/gtest.h>

#include "kernels/cuda/device.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const auto device = invar::cuda::UseDevice(0);
  if (device.ok()) {
    std::printf("%s, CUDA %s\n", device->name.c_str(), device->driver.c_str());
  }
  const int failed = RUN_ALL_TESTS();
  const ::testing::UnitTest& tests = *::testing::UnitTest::GetInstance();
  const bool all_skipped =
      tests.skipped_test_count() == tests.test_to_run_count();
  return failed == 0 && all_skipped ? 77 : failed;
}
