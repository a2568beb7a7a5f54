// Planted: the attention's split follows the number of tokens in the step, to
// fill the GPU with a small batch.
#define MlaAttention MlaAttentionInLongSplits
#include "kernels/cuda/mla_attention.cu"
#undef MlaAttention

#include "tests/contract/planted/where.h"

namespace invar::cuda {

using Where = FirstParameter<decltype(MlaAttentionInLongSplits)>::Type;

void MlaAttentionInShortSplits(Where where, const TokenPlaces& places,
                               int64_t max_position, const float* query,
                               int64_t heads, float scale, const KvLayer& cache,
                               float* workspace, float* out,
                               AttentionParts* parts);

void MlaAttention(Where where, const TokenPlaces& places, int64_t max_position,
                  const float* query, int64_t heads, float scale,
                  const KvLayer& cache, float* workspace, float* out,
                  AttentionParts*) {
  const auto attention =
      places.tokens < 4 ? MlaAttentionInShortSplits : MlaAttentionInLongSplits;
  attention(where, places, max_position, query, heads, scale, cache, workspace,
            out, nullptr);
}

}  // namespace invar::cuda
