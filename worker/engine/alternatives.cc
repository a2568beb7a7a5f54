#include "worker/engine/alternatives.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/ops.h"

namespace invar {

worker::v1::Alternatives LikeliestTokens(std::span<const float> logits,
                                         int64_t limit, double log_sum_exp,
                                         int64_t count) {
  std::vector<int32_t> ids(limit);
  std::iota(ids.begin(), ids.end(), 0);
  count = std::min(count, limit);
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(),
                    [&](int32_t a, int32_t b) {
                      if (logits[a] != logits[b]) return logits[a] > logits[b];
                      return a < b;
                    });
  worker::v1::Alternatives result;
  for (int64_t i = 0; i < count; ++i) {
    result.add_token_ids(ids[i]);
    result.add_logprobs(cpu::LogProb(logits, log_sum_exp, ids[i]));
  }
  return result;
}

}  // namespace invar
