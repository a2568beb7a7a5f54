#include "worker/model/checkpoint/gpu_steps.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace invar::cuda {
namespace {

TEST(GpuSteps, AtMostAFifthIsPadding) {
  for (int64_t tokens = 1; tokens <= kGraphTokens; ++tokens) {
    const int64_t padded = PaddedTokens(tokens);
    EXPECT_GE(padded, tokens);
    EXPECT_EQ(PaddedTokens(padded), padded);
    if (tokens > 32) {
      EXPECT_LE(5 * (padded - tokens), padded) << tokens;
    }
  }
  EXPECT_EQ(PaddedTokens(kGraphTokens + 1), kGraphTokens + 1);
}

// Each once: what is made before the first step is all that steps need.
TEST(GpuSteps, GraphSizesAreThoseOfAllDecodeSteps) {
  struct Limits {
    int64_t sequences, positions, step_tokens;
  };
  for (const Limits& limits :
       {Limits{1, 1, 1}, Limits{1, 1024, 512}, Limits{5, 1025, 6},
        Limits{5, 4096, 8}, Limits{200, 16384, 8192},
        Limits{512, 2049, 8192}}) {
    std::set<GraphSize> needed;
    for (int64_t tokens = 1; tokens <= limits.sequences; ++tokens) {
      const int64_t padded = PaddedTokens(tokens);
      if (padded > std::min(limits.step_tokens, kGraphTokens)) continue;
      for (int64_t position = 0; position < limits.positions; ++position) {
        needed.insert({padded, LaunchPosition(position)});
      }
    }
    const std::vector<GraphSize> sizes =
        GraphSizes(limits.sequences, limits.positions, limits.step_tokens);
    EXPECT_EQ(sizes, std::vector<GraphSize>(needed.begin(), needed.end()))
        << limits.sequences << " sequences of " << limits.positions;
  }
}

}  // namespace
}  // namespace invar::cuda
