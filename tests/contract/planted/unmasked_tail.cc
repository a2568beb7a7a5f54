// Planted: the attention walks to the end of the last block instead of to the
// token, over rows of later tokens and of whoever had the block before.
#define MlaAttention MlaAttentionUpTo
#include "kernels/cpu/mla_attention.cc"
#undef MlaAttention

#include <vector>

namespace invar::cpu {

void MlaAttention(ThreadPool& pool, std::span<const TokenPlace> places,
                  const float* query, int64_t heads, float scale,
                  const KvLayer& cache, float* out) {
  std::vector<TokenPlace> ends(places.begin(), places.end());
  for (TokenPlace& end : ends) {
    end.position = (end.position / kBlockTokens + 1) * kBlockTokens - 1;
  }
  MlaAttentionUpTo(pool, ends, query, heads, scale, cache, out);
}

}  // namespace invar::cpu
