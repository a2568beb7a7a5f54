// How a warpgroup's part of a wide tile leaves: through shared memory, so that
// a token's rows are written 16 bytes a thread, side by side.
#ifndef INVAR_KERNELS_CUDA_WIDE_STORE_CUH_
#define INVAR_KERNELS_CUDA_WIDE_STORE_CUH_

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/wide_tile.h"

namespace invar::cuda {

// How a value leaves. 16 bits are rounded in pairs, by Pack.
struct ToFp32 {
  using Element = float;
  __device__ Element operator()(float x) const { return x; }
};
struct ToBf16 {
  using Element = __nv_bfloat16;
};
struct ToFp16 {
  using Element = __half;
};

// A group's sums of 16 tokens from `first` on, as 16 bits, to shared memory in
// the order in which they leave: a token's rows side by side. Lane i says where
// eight rows of a token go: place(token, row), the token being i % 8 or eight
// more, the row a multiple of eight. A lane's own values are two tokens of a
// row, so the matrices change sides on the way.
template <typename Element, typename Place, int kValues>
__device__ void PlaceSixteenTokens(Place place, int first,
                                   const float (&sum)[kValues]) {
  const int lane = threadIdx.x % 32;
  const int row = threadIdx.x % 128 / 32 * 16 + lane / 8 % 2 * 8;
  const int token = first + lane / 16 * 8 + lane % 8;
  uint32_t pairs[4];  // rows g, g + 8 of eight tokens, then of the next eight
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float* const two = &sum[first / 2 + 2 * i];
    pairs[i] = Pack<Element>(two[0], two[1]);
  }
  StoreTransposed(SharedAddress(place(token, row)), pairs);
}

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
#pragma unroll
  for (int first = 0; first < 2 * kValues; first += kPart) {
    if (first >= count) return;
    BarrierSync(barrier, 128);  // what was here before has left
    if constexpr (kBytes == 2) {
#pragma unroll
      for (int t = first; t < first + kPart; t += 16) {
        PlaceSixteenTokens<Element>(
            [&](int token, int row) {
              return staging + (token - first) * kPitch + row * kBytes;
            },
            t, sum);
      }
    } else {
      std::byte* const mine = staging + FragmentToken(thread, 0) * kPitch +
                              FragmentRow(thread, 0) * kBytes;
#pragma unroll
      for (int i = 0; i < kPart / 2; ++i) {
        // FragmentToken and FragmentRow of i, less those of 0.
        const int token = 8 * (i / 4) + i % 2;
        const int row = 8 * (i / 2 % 2);
        *reinterpret_cast<Element*>(mine + token * kPitch + row * kBytes) =
            convert(sum[first / 2 + i]);
      }
    }
    BarrierSync(barrier, 128);
    constexpr int kStep = 128 / kChunks;  // tokens that leave at once
    static_assert(kPart % kStep == 0);
    const int row = first_row + thread % kChunks * (16 / kBytes);
    const int token = first + thread / kChunks;
    const std::byte* const from =
        staging + thread / kChunks * kPitch + thread % kChunks * 16;
#pragma unroll
    for (int t = 0; t < kPart; t += kStep) {
      if (token + t < count && row < rows) {
        *reinterpret_cast<uint4*>(out + row_of(token + t) * rows + row) =
            *reinterpret_cast<const uint4*>(from + t * kPitch);
      }
    }
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_WIDE_STORE_CUH_
