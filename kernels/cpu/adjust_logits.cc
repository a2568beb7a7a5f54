#include <algorithm>
#include <limits>

#include "kernels/ops.h"

namespace invar::cpu {

void AdjustLogits(std::span<const TokenUse> uses, const Penalties& penalties,
                  std::span<float> logits) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  for (const TokenUse& use : uses) {
    float logit = logits[use.id];
    if (use.seen) {
      logit = logit > 0.0f ? logit / penalties.repetition
                           : logit * penalties.repetition;
    }
    if (use.output_count > 0) {
      // A product and a difference, each rounded: contraction is off.
      const float frequency =
          penalties.frequency * static_cast<float>(use.output_count);
      logit = logit - frequency;
      logit = logit - penalties.presence;
    }
    logits[use.id] = std::clamp(logit + use.bias, -kLargest, kLargest);
  }
}

}  // namespace invar::cpu
