// Planted: the attention's split follows the number of tokens in the step, to
// fill the GPU with a small batch.
#define MlaAttention MlaAttentionInLongSplits
#include "kernels/cuda/mla_attention.cu"
#undef MlaAttention

namespace invar::cuda {

void MlaAttentionInShortSplits(cudaStream_t stream, const TokenPlaces& places,
                               int64_t max_position, const float* query,
                               int64_t heads, float scale, const KvLayer& cache,
                               float* workspace, float* out);

void MlaAttention(cudaStream_t stream, const TokenPlaces& places,
                  int64_t max_position, const float* query, int64_t heads,
                  float scale, const KvLayer& cache, float* workspace,
                  float* out) {
  const auto attention =
      places.tokens < 4 ? MlaAttentionInShortSplits : MlaAttentionInLongSplits;
  attention(stream, places, max_position, query, heads, scale, cache, workspace,
            out);
}

}  // namespace invar::cuda
