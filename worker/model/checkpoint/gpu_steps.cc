#include "worker/model/checkpoint/gpu_steps.h"

#include <algorithm>

#include "kernels/cuda/attention_splits.h"

namespace invar::cuda {

int64_t PaddedTokens(int64_t tokens) {
  if (tokens > kGraphTokens) return tokens;
  int64_t padded = 1;
  while (padded < tokens && padded < 8) padded *= 2;
  // Of more than 32 tokens, at most a fifth of a step is padding.
  const int64_t step = tokens <= 64 ? 8 : tokens <= 128 ? 16 : 32;
  return tokens <= 8 ? padded : (tokens + step - 1) / step * step;
}

int64_t LaunchPosition(int64_t max_position) {
  int64_t positions = kAttentionSplits.Begin(1) * kAttentionTile;
  while (positions <= max_position) positions *= 2;
  return positions - 1;
}

std::vector<int64_t> LaunchPositions(int64_t positions) {
  std::vector<int64_t> all = {LaunchPosition(0)};
  while (all.back() < positions - 1) {
    all.push_back(LaunchPosition(all.back() + 1));
  }
  return all;
}

std::vector<GraphSize> GraphSizes(int64_t sequences, int64_t positions,
                                  int64_t step_tokens) {
  std::vector<GraphSize> sizes;
  const int64_t most = std::min({sequences, kGraphTokens, step_tokens});
  const std::vector<int64_t> launched = LaunchPositions(positions);
  for (int64_t tokens = 1; tokens <= most; ++tokens) {
    const int64_t padded = PaddedTokens(tokens);
    if (padded > step_tokens) break;
    if (!sizes.empty() && sizes.back().tokens == padded) continue;
    for (const int64_t position : launched) sizes.push_back({padded, position});
  }
  return sizes;
}

}  // namespace invar::cuda
