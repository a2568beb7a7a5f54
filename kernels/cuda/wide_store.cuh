// How a warpgroup's part of a wide tile leaves: through shared memory, so that
// a token's rows are written 16 bytes a thread, side by side.
#ifndef INVAR_KERNELS_CUDA_WIDE_STORE_CUH_
#define INVAR_KERNELS_CUDA_WIDE_STORE_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/wide_tile.h"

namespace invar::cuda {

// How a value leaves.
struct ToFp32 {
  using Element = float;
  __device__ Element operator()(float x) const { return x; }
};
struct ToBf16 {
  using Element = __nv_bfloat16;
  __device__ Element operator()(float x) const {
    return __float2bfloat16_rn(x);
  }
};
struct ToFp16 {
  using Element = __half;
  __device__ Element operator()(float x) const { return __float2half_rn(x); }
};

// Tokens of a row block that leave together, and the shared memory that a group
// needs for it.
template <typename Element>
inline constexpr int kStoredTokens = 128 / static_cast<int>(sizeof(Element));
template <typename Element>
inline constexpr int kStagingBytes = kStoredTokens<Element>*(
    kProductRows* static_cast<int>(sizeof(Element)) + 16);

// A row block of the group, its rows from first_row by `count` tokens, to
// out[row_of(token) * rows + row]. `rows` is a multiple of 16 bytes' elements;
// `staging` is the group's own.
template <typename Convert, typename RowOf, int kValues>
__device__ void StoreBlock(const Convert& convert, RowOf row_of, int count,
                           int rows, int first_row, std::byte* staging,
                           typename Convert::Element* out,
                           const float (&sum)[kValues]) {
  using Element = typename Convert::Element;
  constexpr int kBytes = static_cast<int>(sizeof(Element));
  constexpr int kPitch = kProductRows * kBytes + 16;  // banks differ by token
  constexpr int kPart =
      2 * kValues % kStoredTokens<Element> == 0 ? kStoredTokens<Element> : 32;
  static_assert(2 * kValues % kPart == 0 && kPart <= kStoredTokens<Element>);
  constexpr int kChunks = kProductRows * kBytes / 16;  // of a token
  const int thread = threadIdx.x % 128;
  const int barrier = kGroupBarrier + threadIdx.x / 128;
  std::byte* const mine = staging + FragmentToken(thread, 0) * kPitch +
                          FragmentRow(thread, 0) * kBytes;
#pragma unroll
  for (int first = 0; first < 2 * kValues; first += kPart) {
    if (first >= count) return;
    BarrierSync(barrier, 128);  // what was here before has left
#pragma unroll
    for (int i = 0; i < kPart / 2; ++i) {
      // FragmentToken and FragmentRow of i, less those of 0.
      const int token = 8 * (i / 4) + i % 2;
      const int row = 8 * (i / 2 % 2);
      *reinterpret_cast<Element*>(mine + token * kPitch + row * kBytes) =
          convert(sum[first / 2 + i]);
    }
    BarrierSync(barrier, 128);
    const int end = min(kPart, count - first) * kChunks;
#pragma unroll 4
    for (int i = thread; i < end; i += 128) {
      const int token = i / kChunks;
      const int row = first_row + i % kChunks * (16 / kBytes);
      if (row < rows) {
        *reinterpret_cast<uint4*>(out + row_of(first + token) * rows + row) =
            *reinterpret_cast<const uint4*>(staging + token * kPitch +
                                            i % kChunks * 16);
      }
    }
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_WIDE_STORE_CUH_
