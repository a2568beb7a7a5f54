// (value descending, id ascending) as one integer, so that a choice by it is
// total and its order of comparison cannot show.
#ifndef INVAR_KERNELS_CUDA_TOTAL_ORDER_CUH_
#define INVAR_KERNELS_CUDA_TOTAL_ORDER_CUH_

#include <cstdint>

namespace invar::cuda {

// Larger is better, a NaN the worst; both zeros are one.
__device__ inline uint64_t Key(float value, int id) {
  if (value != value) value = __int_as_float(0xff800000);
  if (value == 0.0f) value = 0.0f;
  const uint32_t bits = __float_as_uint(value);
  const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | static_cast<uint32_t>(~id);
}

__device__ inline int KeyId(uint64_t key) {
  return static_cast<int>(~static_cast<uint32_t>(key));
}

__device__ inline float KeyValue(uint64_t key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}

__device__ inline uint64_t WarpMax(uint64_t key) {
  const uint32_t value = static_cast<uint32_t>(key >> 32);
  const uint32_t highest = __reduce_max_sync(0xffffffff, value);
  const uint32_t id = __reduce_max_sync(
      0xffffffff, value == highest ? static_cast<uint32_t>(key) : 0);
  return static_cast<uint64_t>(highest) << 32 | id;
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_TOTAL_ORDER_CUH_
