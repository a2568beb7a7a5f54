// Gemm with many tokens: the same bits.
#ifndef INVAR_KERNELS_CUDA_WIDE_GEMM_H_
#define INVAR_KERNELS_CUDA_WIDE_GEMM_H_

#include "kernels/cuda/ops_linear.h"

namespace invar::cuda {

// From this many on, Gemm chooses it.
inline constexpr int64_t kWideTokens = 512;
// What GemmTile::tokens asks for it with: a request, not a size. (Two blocks of
// a cluster have 256 tokens, in FP8 192.)
inline constexpr int kWideGemmTile = 256;

// Outputs of `tokens`, as the copy engine writes them: boxes of 128 bytes of a
// tile's tokens.
bool MakeWideOutput(const void* data, int64_t tokens, int64_t token_bytes,
                    int tile_tokens, CUtensorMap* map);

bool WideGemmTakes(const GemmWeight& weight);
void WideGemm(const GemmWeight& weight, int64_t leaf, const GemmInput& x,
              int64_t tokens, GemmOutput type, void* out,
              const LaunchOptions& options);

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_WIDE_GEMM_H_
