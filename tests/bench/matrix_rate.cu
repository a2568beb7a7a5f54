#include <algorithm>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_wgmma.h"
#include "tests/bench/matrix_rate.h"

namespace invar::bench {
namespace {

using namespace invar::cuda;  // the products under test

constexpr int kTokens = 128;
constexpr int kGroups = 2;
constexpr int kProductsInFlight = 16;
constexpr int kRounds = 4096;
constexpr int kSharedBytes = 1024 + (kGroups * kProductRows + kTokens) * 128;

// Half the operands are negative, exponents are those of values near one.
__device__ uint32_t RandomCodes(uint32_t i, bool fp8) {
  uint32_t x = i * 2654435761u + 12345u;
  x ^= x >> 15;
  x *= 2246822519u;
  x ^= x >> 13;
  return fp8 ? (x & 0x8f8f8f8f) | 0x30303030 : (x & 0x83ff83ff) | 0x38003800;
}

template <typename Format>
__global__ void __launch_bounds__(kGroups * 128)
    RateKernel(bool fp8, float* out) {
  extern __shared__ std::byte shared[];
  std::byte* operands = TileAligned(shared);
  for (int i = threadIdx.x; i < (kSharedBytes - 1024) / 4; i += blockDim.x) {
    reinterpret_cast<uint32_t*>(operands)[i] = RandomCodes(i, fp8);
  }
  AsyncFence();
  __syncthreads();
  const uint64_t weights = TileDescriptor(
      SharedAddress(operands) + threadIdx.x / 128 * kProductRows * 128);
  const uint64_t inputs =
      TileDescriptor(SharedAddress(operands) + kGroups * kProductRows * 128);
  float sum[kTokens / 2] = {};
  for (int round = 0; round < kRounds; ++round) {
    ProductFence();
#pragma unroll
    for (int i = 0; i < kProductsInFlight; ++i) {
      const int step = i % 4 * 2;  // of 32 bytes
      Product<Format, kTokens>::Run(sum, weights + step, inputs + step, 1);
    }
    ProductCommit();
    ProductWait<0>();
  }
  float all = 0.0f;
  for (const float s : sum) all += s;
  if (all == 0.125f) out[0] = all;
}

template <typename Format>
double Measure(bool fp8) {
  int multiprocessors = 0;
  Check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount,
                               0),
        "counting multiprocessors");
  const auto kernel = RateKernel<Format>;
  Check(cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
        "the matrix rate");
  const auto out = *DeviceBuffer<float>::Allocate(1, "the matrix rate");
  cudaEvent_t start, end;
  Check(cudaEventCreate(&start), "the matrix rate");
  Check(cudaEventCreate(&end), "the matrix rate");
  std::vector<float> times;
  for (int i = 0; i < 30; ++i) {
    cudaEventRecord(start);
    kernel<<<multiprocessors, kGroups * 128, kSharedBytes>>>(fp8, out.data());
    cudaEventRecord(end);
    Check(cudaEventSynchronize(end), "the matrix rate");
    float milliseconds = 0;
    Check(cudaEventElapsedTime(&milliseconds, start, end), "the matrix rate");
    times.push_back(milliseconds);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  const double k = kProductBytes / (fp8 ? 1.0 : 2.0);
  return 2.0 * kProductRows * kTokens * k * kProductsInFlight * kRounds *
         kGroups * multiprocessors / (times[times.size() / 2] * 1e-3);
}

}  // namespace

double MatrixRate(WeightDtype dtype) {
  switch (dtype) {
    case WeightDtype::kFp8E4m3:
      return Measure<E4m3Format>(true);
    case WeightDtype::kFp16:
      return Measure<Fp16Format>(false);
    default:
      return Measure<Bf16Format>(false);
  }
}

}  // namespace invar::bench
