// The cache's number formats: rounding from fp32 (nearest even, saturating, a
// NaN stays one: the rules of kernels/cpu/codes.h), and exact decoding to the
// operands of the matrix units.
#ifndef INVAR_KERNELS_CUDA_CODES_CUH_
#define INVAR_KERNELS_CUDA_CODES_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstddef>
#include <cstdint>

#include "kernels/types.h"

namespace invar::cuda {

// Each format: kBytes of an element; Store4; Operand, the type of the products
// that it decodes to; Decode4, four elements along a row as two registers of
// operands.

template <__nv_fp8_interpretation_t kFormat>
struct Fp8Code {
  static constexpr int kBytes = 1;
  using Operand = __half;
  __device__ static uint32_t Decode2(uint32_t codes) {
    const __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2(
        static_cast<__nv_fp8x2_storage_t>(codes), kFormat);
    return pair.x | static_cast<uint32_t>(pair.y) << 16;
  }
  __device__ static uint2 Decode4(uint32_t codes) {
    return {Decode2(codes & 0xffff), Decode2(codes >> 16)};
  }
  // codes: columns 2g and 2g+1 of row 2t, then of row 2t+1. Returns column
  // 2g + odd of both rows.
  __device__ static uint32_t Pair(uint32_t codes, bool odd) {
    return Decode2(__byte_perm(codes, 0, odd ? 0x4431 : 0x4420));
  }
  // Four values to elements [4 * quad, 4 * quad + 4) of a row.
  __device__ static void Store4(float4 v, std::byte* row, int quad) {
    const uint32_t low =
        __nv_cvt_float2_to_fp8x2({v.x, v.y}, __NV_SATFINITE, kFormat);
    const uint32_t high =
        __nv_cvt_float2_to_fp8x2({v.z, v.w}, __NV_SATFINITE, kFormat);
    reinterpret_cast<uint32_t*>(row)[quad] = low | high << 16;
  }
};
using E5m2 = Fp8Code<__NV_E5M2>;
using E4m3 = Fp8Code<__NV_E4M3>;

// A weight's alone.
struct Fp16 {
  static constexpr int kBytes = 2;
  using Operand = __half;
};

struct Bf16 {
  static constexpr int kBytes = 2;
  using Operand = __nv_bfloat16;
  __device__ static uint32_t Round(float x) {
    // The largest finite bf16. A NaN compares false, and stays.
    constexpr float kMax = 0x1.fep127f;
    x = x > kMax ? kMax : (x < -kMax ? -kMax : x);
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
  }
  __device__ static void Store4(float4 v, std::byte* row, int quad) {
    reinterpret_cast<uint2*>(row)[quad] = {Round(v.x) | Round(v.y) << 16,
                                           Round(v.z) | Round(v.w) << 16};
  }
};

// Calls body.operator()<Code>() with the format of a cache that is not fp32.
template <typename Body>
void DispatchKv(KvDtype dtype, Body body) {
  switch (dtype) {
    case KvDtype::kFp8E5m2:
      return body.template operator()<E5m2>();
    case KvDtype::kFp8E4m3:
      return body.template operator()<E4m3>();
    case KvDtype::kBf16:
      return body.template operator()<Bf16>();
    case KvDtype::kFp32:
      return;  // the loader refuses it
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_CODES_CUH_
