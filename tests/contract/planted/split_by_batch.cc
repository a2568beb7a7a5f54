// Planted: the attention's split follows the number of tokens in the step, as
// a kernel's does that wants to fill the machine with a small batch.
#define MlaAttention MlaAttentionInLongSplits
#include "kernels/cpu/mla_attention.cc"
#undef MlaAttention

namespace invar::cpu {

void MlaAttentionInShortSplits(ThreadPool& pool,
                               std::span<const TokenPlace> places,
                               const float* query, int64_t heads, float scale,
                               const KvLayer& cache, float* out);

void MlaAttention(ThreadPool& pool, std::span<const TokenPlace> places,
                  const float* query, int64_t heads, float scale,
                  const KvLayer& cache, float* out) {
  const auto attention =
      places.size() < 4 ? MlaAttentionInShortSplits : MlaAttentionInLongSplits;
  attention(pool, places, query, heads, scale, cache, out);
}

}  // namespace invar::cpu
