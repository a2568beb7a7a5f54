// kv_b_proj in absorbed form for many tokens: absorb.cu's products, step by
// step, by warpgroups. A block has one head, whose weights it makes operands of
// once and keeps in shared memory, and walks tiles of tokens. Two workers a
// block, with tiles of their own: while one multiplies the other loads and
// stores, since both products are bound by the bytes of queries and of what has
// been attended.
#ifndef INVAR_KERNELS_CUDA_PROMPT_ABSORB_CUH_
#define INVAR_KERNELS_CUDA_PROMPT_ABSORB_CUH_

#include <algorithm>

#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/head_dispatch.cuh"
#include "kernels/cuda/prompt_tiles.cuh"

namespace invar::cuda::prompt_absorb {

inline constexpr int kWorkers = 2;  // of a block

// An operand of kRows rows: blocks of 64 columns one after the other.
template <int kRows, int kColumns>
inline constexpr int kOperandBytes =
    kColumns / kBlockColumns* kRows* kTileRowBytes;

// The weights of a head, (kRows, kColumns), by all threads; row r becomes row
// place(r) of the operand.
template <typename Code, int kRows, int kColumns, int kThreads, typename Place>
__device__ void StoreWeights(const std::byte* weights, std::byte* to,
                             Place place) {
  constexpr int kRowChunks = kColumns * Code::kBytes / 64;
#pragma unroll 4
  for (int i = threadIdx.x; i < kRows * kRowChunks; i += kThreads) {
    uint4 codes[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      codes[t] = __ldg(reinterpret_cast<const uint4*>(weights) + 4 * i + t);
    }
    StoreOperands<Code>(codes, place(i / kRowChunks), i % kRowChunks,
                        kRows * kTileRowBytes, to);
  }
}

// As many blocks a head as the GPU runs at once, whose workers take tiles of
// tile_tokens in turn.
inline dim3 Grid(int64_t heads, int64_t tokens, int64_t tile_tokens) {
  const int64_t step = kWorkers * tile_tokens;
  const int64_t most = std::max<int64_t>(1, Multiprocessors() / heads);
  return dim3(
      static_cast<unsigned>(heads),
      static_cast<unsigned>(std::min((tokens + step - 1) / step, most)));
}

}  // namespace invar::cuda::prompt_absorb

#endif  // INVAR_KERNELS_CUDA_PROMPT_ABSORB_CUH_
