// Attention in absorbed form cut into splits of any length: bits follow it, so
// that mode FAST alone has others than kAttentionSplits.
#ifndef INVAR_KERNELS_CUDA_FREE_SPLIT_H_
#define INVAR_KERNELS_CUDA_FREE_SPLIT_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/ops.h"

namespace invar::cuda {

// Those of ops.h, cut so.
void MlaAttention(const LaunchOptions& options, const TokenPlaces& places,
                  int64_t max_position, const float* query, int64_t heads,
                  float scale, const KvLayer& cache, float* workspace,
                  float* out, const AttentionSplits& cut,
                  AttentionParts* parts);
int64_t AttentionWorkspaceFloats(int64_t tokens, int64_t heads,
                                 int64_t max_position,
                                 const AttentionSplits& cut);
void PromptAttention(const LaunchOptions& options, const TokenPlaces& places,
                     int64_t blocks, const PackedQueries& query,
                     const HeadProjection& v, float scale, const KvLayer& cache,
                     std::byte* workspace, const PackedAttended& out,
                     const AttentionSplits& cut);

// MlaAttention's in mode FAST, by units, a token's 16 heads: DETERMINISTIC's
// while clusters share a split (below 100), 256 positions while a block's two
// groups take turns (below 200), then one.
AttentionSplits FastAttentionSplits(int64_t tokens, int64_t heads,
                                    int64_t max_position);

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_FREE_SPLIT_H_
