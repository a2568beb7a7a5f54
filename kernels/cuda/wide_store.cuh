// How a warpgroup's part of a wide tile leaves: through shared memory, so that
// a token's rows are written 16 bytes a thread, side by side.
#ifndef INVAR_KERNELS_CUDA_WIDE_STORE_CUH_
#define INVAR_KERNELS_CUDA_WIDE_STORE_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/wide_tile.h"

namespace invar::cuda {

// Named barriers of a wide tile; 0 is the block's own.
inline constexpr int kMultipliersBarrier = 1;
inline constexpr int kGroupBarrier = 2;  // and the next: of each group

__device__ inline void BarrierSync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

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

// The group's sums, kUsed row blocks from first_row by `count` tokens, to
// out[row_of(token) * rows + row]. `rows` is a multiple of 16 bytes' elements;
// `staging` is the group's own: StagingBytes.
template <int kUsed, typename Element, int kValues>
constexpr int StagingBytes() {
  return 2 * kValues *
         (kUsed * kProductRows * static_cast<int>(sizeof(Element)) + 16);
}

template <int kUsed, typename Convert, typename RowOf, int kBlocks, int kValues>
__device__ void StoreTile(const Convert& convert, RowOf row_of, int count,
                          int rows, int first_row, std::byte* staging,
                          typename Convert::Element* out,
                          const float (&sum)[kBlocks][kValues]) {
  using Element = typename Convert::Element;
  constexpr int kRows = kUsed * kProductRows;
  constexpr int kBytes = static_cast<int>(sizeof(Element));
  constexpr int kPitch = kRows * kBytes + 16;  // banks differ by token
  const int thread = threadIdx.x % 128;
  std::byte* const mine = staging + FragmentToken(thread, 0) * kPitch +
                          FragmentRow(thread, 0) * kBytes;
#pragma unroll
  for (int m = 0; m < kUsed; ++m) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      // FragmentToken and FragmentRow of i, less those of 0.
      const int token = 8 * (i / 4) + i % 2;
      const int row = 8 * (i / 2 % 2) + m * kProductRows;
      *reinterpret_cast<Element*>(mine + token * kPitch + row * kBytes) =
          convert(sum[m][i]);
    }
  }
  BarrierSync(kGroupBarrier + threadIdx.x / 128, 128);
  constexpr int kChunks = kRows * kBytes / 16;  // of a token
#pragma unroll 4
  for (int i = thread; i < count * kChunks; i += 128) {
    const int token = i / kChunks;
    const int row = first_row + i % kChunks * (16 / kBytes);
    if (row < rows) {
      *reinterpret_cast<uint4*>(out + row_of(token) * rows + row) =
          *reinterpret_cast<const uint4*>(staging + token * kPitch +
                                          i % kChunks * 16);
    }
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_WIDE_STORE_CUH_
