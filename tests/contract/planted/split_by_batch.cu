// Planted: the attention's split follows the number of tokens in the step, to
// fill the GPU with a small batch.
#define MlaAttention MlaAttentionInLongSplits
#include "kernels/cuda/mla_attention.cu"
#undef MlaAttention

namespace invar::cuda {

void MlaAttentionInShortSplits(const LaunchOptions& options,
                               const TokenPlaces& places, int64_t max_position,
                               const float* query, int64_t heads, float scale,
                               const KvLayer& cache, float* workspace,
                               float* out, AttentionParts* parts);

// Nothing is left in parts: whoever merges them knows of one split.
void MlaAttention(const LaunchOptions& options, const TokenPlaces& places,
                  int64_t max_position, const float* query, int64_t heads,
                  float scale, const KvLayer& cache, float* workspace,
                  float* out, AttentionParts*) {
  if (places.tokens < 4) {
    MlaAttentionInShortSplits(options, places, max_position, query, heads,
                              scale, cache, workspace, out, nullptr);
  } else {
    MlaAttentionInLongSplits(options, places, max_position, query, heads, scale,
                             cache, workspace, out, nullptr);
  }
}

// Mode FAST's, as it is.
void MlaAttention(const LaunchOptions& options, const TokenPlaces& places,
                  int64_t max_position, const float* query, int64_t heads,
                  float scale, const KvLayer& cache, float* workspace,
                  float* out, const AttentionSplits& cut,
                  AttentionParts* parts) {
  MlaAttentionInLongSplits(options, places, max_position, query, heads, scale,
                           cache, workspace, out, cut, parts);
}

}  // namespace invar::cuda
