// Rows of fp32 as the left operand of m16n8k16, and what lies in memory beside
// them as the right one.
//
// Within a group of 64 bytes of the right operand's row, thread t of four reads
// bytes [16 t, 16 t + 16): operands of 4 / kBytes steps. So step j takes the
// elements 4 j .. 4 j + 3 of each thread's 16 bytes: K in a permuted order, the
// same on both sides.
#ifndef INVAR_KERNELS_CUDA_OPERANDS_CUH_
#define INVAR_KERNELS_CUDA_OPERANDS_CUH_

#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/mma.cuh"

namespace invar::cuda {

// 2^e such that the largest of a row comes to [2^14, 2^15): fp16 then has the
// range of what is far smaller, too.
__device__ inline float RowScale(float max) {
  const int exponent = (__float_as_int(max) >> 23) - 127;
  const float scale = __int_as_float((127 + min(14 - exponent, 100)) << 23);
  // Neither of zeros, nor of what is no number.
  return max > 0.0f && max < INFINITY ? scale : 1.0f;
}

// What undoes it: 1 / scale, which is a power of two as well.
__device__ inline float ScaleInverse(float scale) {
  return __int_as_float((254 << 23) - __float_as_int(scale));
}

// A warp's row of kColumns values: elements 64 i + 2 lane and the next.
template <int kColumns>
using WarpRow = float2[kColumns / 64];

// Of zeros: null.
template <int kColumns>
__device__ inline void LoadRow(const float* row, WarpRow<kColumns>& x) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kColumns / 64; ++i) {
    x[i] = row == nullptr ? float2{0.0f, 0.0f}
                          : reinterpret_cast<const float2*>(row)[32 * i + lane];
  }
}

// A warp rounds its row, times factors unless these are null, times a power of
// two, which it returns, to row `index` of 16 in steps[kColumns / 16].
template <typename Code, int kColumns>
__device__ inline float PackRow(WarpRow<kColumns>& x, const float* factors,
                                int index, uint4 (*steps)[32]) {
  using Operand = typename Code::Operand;
  constexpr int kElements = 16 / Code::kBytes;
  const int lane = threadIdx.x % 32;
  float max = 0.0f;
#pragma unroll
  for (int i = 0; i < kColumns / 64; ++i) {
    if (factors != nullptr) {
      const float2 f = reinterpret_cast<const float2*>(factors)[32 * i + lane];
      x[i] = {x[i].x * f.x, x[i].y * f.y};
    }
    max = fmaxf(max, fmaxf(fabsf(x[i].x), fabsf(x[i].y)));
  }
#pragma unroll
  for (int step = 16; step >= 1; step /= 2) {
    max = fmaxf(max, __shfl_xor_sync(0xffffffff, max, step));
  }
  const float scale = std::is_same_v<Operand, __half> ? RowScale(max) : 1.0f;
#pragma unroll
  for (int i = 0; i < kColumns / 64; ++i) {
    const int k = 64 * i + 2 * lane;
    const int step = k / (4 * kElements) * (kElements / 4) + k % kElements / 4;
    const int to_lane = index % 8 * 4 + k % (4 * kElements) / kElements;
    const int part = k % 4 / 2 * 2 + index / 8;
    reinterpret_cast<uint32_t*>(&steps[step][to_lane])[part] =
        Pack<Operand>(x[i].x * scale, x[i].y * scale);
  }
  return scale;
}

template <typename Code, int kColumns>
__device__ inline float PackRow(const float* row, const float* factors,
                                int index, uint4 (*steps)[32]) {
  WarpRow<kColumns> x;
  LoadRow<kColumns>(row, x);
  return PackRow<Code, kColumns>(x, factors, index, steps);
}

// Step j's right operand from a thread's 16 bytes.
template <typename Code>
__device__ inline uint2 RightOperand(const uint4& codes, int j) {
  if constexpr (Code::kBytes == 1) {
    return Code::Decode4(reinterpret_cast<const uint32_t*>(&codes)[j]);
  } else {
    return reinterpret_cast<const uint2*>(&codes)[j];
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_OPERANDS_CUH_
