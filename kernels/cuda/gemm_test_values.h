// Operands for the tests of products: as codes, and exactly as doubles.
#ifndef INVAR_KERNELS_CUDA_GEMM_TEST_VALUES_H_
#define INVAR_KERNELS_CUDA_GEMM_TEST_VALUES_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstring>
#include <vector>

#include "kernels/cpu/test_values.h"
#include "kernels/cuda/ops_linear.h"
#include "kernels/cuda/testing/gpu_test.h"

namespace invar::cuda::testing {

// Of codes on the device, scales per expert.
inline GroupedWeights MakeGroupedWeights(WeightDtype dtype, int64_t experts,
                                         int64_t hidden, int64_t inner,
                                         const void* gate_up, const void* down,
                                         const float* gate_scales,
                                         const float* up_scales,
                                         const float* down_scales) {
  GroupedWeights w;
  w.experts = experts;
  w.hidden = hidden;
  w.inner = inner;
  w.gate_scales = gate_scales;
  w.up_scales = up_scales;
  w.down_scales = down_scales;
  EXPECT_TRUE(
      MakeGemmWeight(dtype, gate_up, experts * 2 * inner, hidden, &w.gate_up));
  EXPECT_TRUE(MakeGemmWeight(dtype, down, experts * hidden, inner, &w.down));
  return w;
}

struct Codes {
  WeightDtype dtype;
  std::vector<std::byte> bytes;
  std::vector<double> values;
};

// `values` rounded to the dtype; e4m3 saturates.
inline Codes Encode(WeightDtype dtype, const std::vector<float>& values) {
  const int64_t size = WeightElementBytes(dtype);
  Codes codes = {dtype, std::vector<std::byte>(values.size() * size), {}};
  for (size_t i = 0; i < values.size(); ++i) {
    std::byte* to = &codes.bytes[i * size];
    if (dtype == WeightDtype::kFp8E4m3) {
      const uint8_t code =
          __nv_cvt_float_to_fp8(values[i], __NV_SATFINITE, __NV_E4M3);
      std::memcpy(to, &code, 1);
      codes.values.push_back(cpu::E4m3Value(code));
    } else if (dtype == WeightDtype::kFp16) {
      const __half half = __float2half_rn(values[i]);
      std::memcpy(to, &half, 2);
      codes.values.push_back(__half2float(half));
    } else {
      const __nv_bfloat16 half = __float2bfloat16_rn(values[i]);
      std::memcpy(to, &half, 2);
      codes.values.push_back(__bfloat162float(half));
    }
  }
  return codes;
}

// What bf16 buffers hold, exactly.
inline std::vector<float> Bf16Values(const std::vector<__nv_bfloat16>& codes) {
  return {codes.begin(), codes.end()};
}

// The largest error of rounding to bf16: half a step of eight bits.
inline constexpr double kBf16Tolerance = 0x1p-9;

// The largest error that the products of a dtype may have. FP8 products keep
// fewer bits inside the matrix units.
inline double ProductTolerance(WeightDtype dtype) {
  return dtype == WeightDtype::kFp8E4m3 ? 1.5e-3 : 2e-6;
}

}  // namespace invar::cuda::testing

#endif  // INVAR_KERNELS_CUDA_GEMM_TEST_VALUES_H_
