// Attention in absorbed form with splits of any length, a multiple of
// kAttentionTile: bits follow it, so that mode FAST alone has another one than
// kAttentionSplit.
#ifndef INVAR_KERNELS_CUDA_FREE_SPLIT_H_
#define INVAR_KERNELS_CUDA_FREE_SPLIT_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/ops.h"

namespace invar::cuda {

// Those of ops.h, `split` tokens each.
void MlaAttention(const LaunchOptions& options, const TokenPlaces& places,
                  int64_t max_position, const float* query, int64_t heads,
                  float scale, const KvLayer& cache, float* workspace,
                  float* out, int64_t split, AttentionParts* parts);
int64_t AttentionWorkspaceFloats(int64_t tokens, int64_t heads,
                                 int64_t max_position, int64_t split);
void PromptAttention(const LaunchOptions& options, const TokenPlaces& places,
                     int64_t blocks, const float* query, int64_t heads,
                     float scale, const KvLayer& cache, std::byte* workspace,
                     float* out, int64_t split);
void PromptAttention(const LaunchOptions& options, const TokenPlaces& places,
                     int64_t blocks, const PackedQueries& query, int64_t heads,
                     float scale, const KvLayer& cache, std::byte* workspace,
                     float* out, int64_t split);

// MlaAttention's split in mode FAST: as few as keep the GPU busy, however many
// sequences of whatever length share it.
int64_t FastAttentionSplit(int64_t tokens, int64_t heads, int64_t max_position);

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_FREE_SPLIT_H_
