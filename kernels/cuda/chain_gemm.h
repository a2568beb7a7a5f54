// Gemm of FP8 weights whose K is uncut, one ascending chain, with few tokens:
// the same bits.
#ifndef INVAR_KERNELS_CUDA_CHAIN_GEMM_H_
#define INVAR_KERNELS_CUDA_CHAIN_GEMM_H_

#include "kernels/cuda/gemm_problem.h"

namespace invar::cuda {

// Of each task of a launch.
bool ChainGemmTakes(const GemmTask& task);
// Whether each block has a multiprocessor for itself.
bool ChainGemmFits(const GemmTasks& tasks);
// tile: tokens of a block, 8, 32, 64 or 128; 0: chosen.
void ChainGemm(const GemmTasks& tasks, const LaunchOptions& options,
               int tile = 0);

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_CHAIN_GEMM_H_
