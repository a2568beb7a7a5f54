// Gemm of weights with very many rows (the LM head), K uncut, and more than a
// few tokens: the same bits.
#ifndef INVAR_KERNELS_CUDA_TALL_GEMM_H_
#define INVAR_KERNELS_CUDA_TALL_GEMM_H_

#include "kernels/cuda/ops_linear.h"

namespace invar::cuda {

// From this many rows and tokens on, Gemm chooses it.
inline constexpr int64_t kTallRows = 16384;
inline constexpr int64_t kTallTokens = 65;

bool TallGemmTakes(const GemmWeight& weight, int64_t leaf);
// tile: tokens of a block, 64, 128 or 256; 0: chosen.
void TallGemm(const GemmWeight& weight, const GemmInput& x, int64_t tokens,
              GemmOutput type, void* out, const LaunchOptions& options,
              int tile = 0);

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_TALL_GEMM_H_
