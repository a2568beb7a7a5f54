// Planted: among experts of equal score, a token takes the lowest id or the
// highest by its place in the step, as a parallel top-k does that keeps what
// it met first.
#define Router RouterByScoreAndId
#include "kernels/cpu/router.cc"
#undef Router

#include <algorithm>
#include <vector>

namespace invar::cpu {

void Router(ThreadPool& pool, const RouterOptions& options,
            const Weight& weight, const float* correction, const float* x,
            int64_t tokens, int32_t* ids, float* weights) {
  RouterOptions every = options;
  every.top_k = options.experts;
  std::vector<int32_t> all_ids(tokens * every.top_k);
  std::vector<float> all_weights(tokens * every.top_k);
  RouterByScoreAndId(pool, every, weight, correction, x, tokens,
                     all_ids.data(), all_weights.data());
  for (int64_t t = 0; t < tokens; ++t) {
    int32_t* begin = &all_ids[t * every.top_k];
    const float* scores = &all_weights[t * every.top_k];
    for (int64_t i = 0; t % 2 == 1 && i < every.top_k;) {
      int64_t end = i + 1;
      while (end < every.top_k && scores[end] == scores[i]) ++end;
      std::reverse(begin + i, begin + end);
      i = end;
    }
    std::copy_n(begin, options.top_k, ids + t * options.top_k);
    std::copy_n(scores, options.top_k, weights + t * options.top_k);
  }
}

}  // namespace invar::cpu
