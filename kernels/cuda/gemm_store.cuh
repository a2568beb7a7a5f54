// How a product's sums leave a warp: 16 rows by 8 tokens at a time, a unit.
//
// In registers a unit is a float4 a lane: two rows of two tokens, a quad of the
// products' fragment. It passes through shared memory, from where lanes take
// four neighbouring rows of a token each: four lanes then write 64 bytes side
// by side, or 32 of bf16. Straight from the fragment, 4 or 16 bytes a lane in
// as many places, the stores took longer than the products.
#ifndef INVAR_KERNELS_CUDA_GEMM_STORE_CUH_
#define INVAR_KERNELS_CUDA_GEMM_STORE_CUH_

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ops_linear.h"

namespace invar::cuda {

inline constexpr int kUnitRows = 16;
inline constexpr int kUnitTokens = 8;

// Where lane `lane`'s quad lies in a unit of 32: neither the quads' writes nor
// their readers meet in a bank.
__device__ inline int QuadPlace(int lane) { return lane ^ lane >> 2 & 4; }

// Reads units: this lane's four rows of one token.
struct UnitReader {
  // Of the first unit; where the lanes' quads have changed places, the rows'
  // order has changed in pairs.
  const float* even;
  const float* odd;

  __device__ explicit UnitReader(const float4* units) {
    const int lane = threadIdx.x % 32;
    const int token = lane / 4;
    const int quad = lane % 2 * 16 + token / 2;  // of the first row
    const float* const first = reinterpret_cast<const float*>(units + quad) +
                               lane % 4 / 2 * 2 + token % 2;
    even = first + lane % 2 * 16;
    odd = first - lane % 2 * 16;
  }
  __device__ float4 operator()(int unit) const {
    const int at = unit * 32 * 4;
    return {even[at], odd[at + 16], even[at + 32], odd[at + 48]};
  }
};

// Units of the same rows leave from here, and of ascending tokens. Arguments:
// rows, tokens, scale, row_scales, token_scales, out and type, as Gemm's.
template <typename Arguments>
struct Output {
  const Arguments& a;
  float scale[4];
  int rows;    // of this lane's four, that exist
  int64_t at;  // in `out`
  int token;
  bool is_wide;  // four rows at a time

  __device__ Output(const Arguments& a, int first_row, int first_token) : a(a) {
    const int row = first_row + threadIdx.x % 4 * 4;
    rows = min(4, a.rows - row);
    token = first_token + threadIdx.x % 32 / 4;
    at = static_cast<int64_t>(token) * a.rows + row;
    is_wide = a.rows % 4 == 0 && a.token_scales == nullptr;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scale[i] = a.row_scales == nullptr
                     ? a.scale
                     : a.scale * a.row_scales[min(row + i, a.rows - 1)];
    }
  }

  // A unit's four rows. The next one's tokens follow.
  __device__ void Store(const float4& sum) {
    if (token < a.tokens && rows > 0) {
      if (is_wide) {
        const float4 x = {sum.x * scale[0], sum.y * scale[1], sum.z * scale[2],
                          sum.w * scale[3]};
        if (a.type == GemmOutput::kFp32) {
          *reinterpret_cast<float4*>(static_cast<float*>(a.out) + at) = x;
        } else {
          *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(a.out) + at) = {
              Pack<__nv_bfloat16>(x.x, x.y), Pack<__nv_bfloat16>(x.z, x.w)};
        }
      } else {
        StoreRows(sum);
      }
    }
    token += kUnitTokens;
    at += static_cast<int64_t>(kUnitTokens) * a.rows;
  }

 private:
  __device__ void StoreRows(const float4& sum) const {
    const float value[4] = {sum.x, sum.y, sum.z, sum.w};
    // Times 1 where there is none: the same bits.
    const float factor =
        a.token_scales == nullptr ? 1.0f : a.token_scales[token];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i >= rows) return;
      const float x = value[i] * (scale[i] * factor);
      if (a.type == GemmOutput::kFp32) {
        static_cast<float*>(a.out)[at + i] = x;
      } else {
        static_cast<__nv_bfloat16*>(a.out)[at + i] = __float2bfloat16_rn(x);
      }
    }
  }
};

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_GEMM_STORE_CUH_
