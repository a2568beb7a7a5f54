#include "kernels/cpu/lanes.h"
#include "kernels/ops.h"

namespace invar::cpu {

int32_t Argmax(std::span<const float> logits, int64_t limit) {
  // The maximum has no order; only its first place does.
  Lanes max = Broadcast(logits[0]);
  int64_t k = 0;
  for (; k + kLanes <= limit; k += kLanes) max = Max(max, Load(&logits[k]));
  float highest = Max(max);
  for (; k < limit; ++k) {
    if (logits[k] > highest) highest = logits[k];
  }
  for (int64_t id = 0; id < limit; ++id) {
    if (logits[id] == highest) return static_cast<int32_t>(id);
  }
  return 0;  // only with a NaN, which Forward reports
}

}  // namespace invar::cpu
