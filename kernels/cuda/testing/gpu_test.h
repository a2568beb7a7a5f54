// What the GPU tests share.
#ifndef INVAR_KERNELS_CUDA_TESTING_GPU_TEST_H_
#define INVAR_KERNELS_CUDA_TESTING_GPU_TEST_H_

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/types.h"

namespace invar::cuda::testing {

// Without a usable GPU each test is skipped, by name and with the reason.
// Test suites derive from it (or from GpuTestWithParam).
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const absl::StatusOr<DeviceFacts> device = UseDevice(0);
    if (!device.ok()) GTEST_SKIP() << device.status().message();
  }
  Stream& stream() {
    if (!stream_.has_value()) stream_.emplace();
    return *stream_;
  }

 private:
  std::optional<Stream> stream_;
};

template <typename Parameter>
class GpuTestWithParam : public GpuTest,
                         public ::testing::WithParamInterface<Parameter> {};

// The cache's dtypes on the GPU, and their names in a test's name.
inline constexpr KvDtype kKvDtypes[] = {KvDtype::kFp8E5m2, KvDtype::kFp8E4m3,
                                        KvDtype::kBf16};
inline std::string KvDtypeName(const ::testing::TestParamInfo<KvDtype>& info) {
  static constexpr const char* kNames[] = {"e5m2", "e4m3", "bf16"};
  return kNames[static_cast<int>(info.param)];
}

template <typename T>
DeviceBuffer<T> Upload(const std::vector<T>& values) {
  return *DeviceBuffer<T>::Upload(values, "a test");
}

// Every byte 0x7f: a NaN of e4m3, e5m2 and fp16, and a huge fp32 and bf16. Fp32
// outputs are poisoned with NaN instead.
template <typename T>
DeviceBuffer<T> Poisoned(int64_t count) {
  DeviceBuffer<T> buffer = *DeviceBuffer<T>::Allocate(count, "a test");
  Check(FillOnDevice(buffer.data(), std::is_same_v<T, float> ? 0xff : 0x7f,
                     buffer.bytes()),
        "poisoning");
  return buffer;
}

// `count` values of random sign whose magnitudes spread evenly in the exponent
// over [2^low, 2^high): a pure function of the seed.
inline std::vector<float> SpreadValues(int64_t count, uint64_t seed,
                                       double low = -12, double high = 2) {
  std::mt19937_64 random(seed);
  std::vector<float> values(count);
  for (float& value : values) {
    const uint64_t draw = random();
    const double magnitude = std::exp2(
        low + (high - low) * static_cast<double>(draw >> 12) * 0x1p-52);
    value = static_cast<float>(draw & 1 ? -magnitude : magnitude);
  }
  return values;
}

// |actual - expected| / |expected|, Euclidean; infinite if a value is no
// number.
template <typename Actual, typename Reference>
double RelativeError(const std::vector<Actual>& actual,
                     const std::vector<Reference>& expected) {
  double error = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = static_cast<double>(actual[i]) - expected[i];
    error += difference * difference;
    norm += static_cast<double>(expected[i]) * expected[i];
  }
  const double relative = std::sqrt(error / norm);
  return std::isfinite(relative) ? relative : HUGE_VAL;
}

template <typename T>
bool SameBits(const T* a, const T* b, int64_t count) {
  return std::memcmp(a, b, count * sizeof(T)) == 0;
}

}  // namespace invar::cuda::testing

#endif  // INVAR_KERNELS_CUDA_TESTING_GPU_TEST_H_
