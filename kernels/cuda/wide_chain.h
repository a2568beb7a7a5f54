// Gemm of FP8 weights whose K is uncut, with many tokens: the same bits.
#ifndef INVAR_KERNELS_CUDA_WIDE_CHAIN_H_
#define INVAR_KERNELS_CUDA_WIDE_CHAIN_H_

#include "kernels/cuda/gemm_problem.h"

namespace invar::cuda {

// From this many tokens on, Gemm chooses it.
inline constexpr int64_t kWideChainTokens = 512;

// Of each task of a launch.
bool WideChainTakes(const GemmTask& task, GemmOutput type);
// rows: of a tile, 128 (by 192 tokens) or 256 (by 128); 0: chosen.
void WideChain(const GemmTasks& tasks, const LaunchOptions& options,
               int rows = 0);

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_WIDE_CHAIN_H_
