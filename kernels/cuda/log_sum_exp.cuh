// cpu::LogSumExp, step for step: kernels/cpu/{log_prob,math}.cc. Runs of 1,024
// logits, 16 lanes each, are what threads share; their sums are added in double
// by one thread.
#ifndef INVAR_KERNELS_CUDA_LOG_SUM_EXP_CUH_
#define INVAR_KERNELS_CUDA_LOG_SUM_EXP_CUH_

#include "kernels/cuda/silu_mul.h"
#include "kernels/types.h"

namespace invar::cuda {

inline constexpr int kLogSumExpRun = 1024;

// ln(2^e m) = e ln 2 + 2 artanh((m - 1) / (m + 1)), m in [sqrt(1/2), sqrt(2)).
__device__ inline double Log(double x) {
  constexpr double kLn2High = 0x1.62e42fep-1;
  constexpr double kLn2Low = 0x1.f473de6af278fp-30;
  const long long bits = __double_as_longlong(x);
  long long exponent = (bits >> 52) - 1023;
  double m = __longlong_as_double((bits & 0xfffffffffffff) | 1023ll << 52);
  if (m > 0x1.6a09e667f3bcdp+0) {
    m *= 0.5;
    ++exponent;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;
  double sum = 0.0;
  for (int k = 23; k >= 3; k -= 2) sum = (1.0 / k + sum) * z;
  const double e = static_cast<double>(exponent);
  return e * kLn2High + (e * kLn2Low + 2.0 * (s + s * sum));
}

// Of logits[0, count), whose highest is given; run_sums has a place a run. By
// all threads of a block; thread 0's result counts.
template <int kThreads>
__device__ double LogSumExp(const float* logits, int count, float highest,
                            float* run_sums) {
  constexpr int kLaneCount = static_cast<int>(kLanes);
  const int lane = threadIdx.x % kLaneCount;
  const int runs = (count + kLogSumExpRun - 1) / kLogSumExpRun;
  for (int first = threadIdx.x / 32 * 2; first < runs; first += kThreads / 16) {
    // A warp has two runs; the second may be past the end.
    const int run = first + threadIdx.x % 32 / kLaneCount;
    const int begin = run * kLogSumExpRun;
    const int end = min(begin + kLogSumExpRun, count);
    float sum = 0.0f;
#pragma unroll 8
    for (int k = begin + lane; k < end; k += kLaneCount) {
      sum += Exponential(logits[k] - highest);
    }
#pragma unroll
    for (int step = kLaneCount / 2; step > 0; step /= 2) {
      sum += __shfl_xor_sync(0xffffffff, sum, step);
    }
    if (lane == 0 && run < runs) run_sums[run] = sum;
  }
  __syncthreads();
  if (threadIdx.x != 0) return 0.0;
  double total = 0.0;
  for (int run = 0; run < runs; ++run) {
    total += static_cast<double>(run_sums[run]);
  }
  return static_cast<double>(highest) + Log(total);
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_LOG_SUM_EXP_CUH_
