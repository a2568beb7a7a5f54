#include <algorithm>
#include <limits>

#include "kernels/cpu/exp.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/math.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// Sixteen values from `begin`, padded with `padding` past the end.
Lanes LoadPadded(std::span<const float> x, size_t begin, float padding) {
  if (begin + kLanes <= x.size()) return Load(x.data() + begin);
  float values[kLanes];
  std::fill(values, values + kLanes, padding);
  std::copy(x.begin() + begin, x.end(), values);
  return Load(values);
}

}  // namespace

double LogSumExp(std::span<const float> logits) {
  constexpr size_t kRun = 1024;
  Lanes max = Broadcast(kNegativeInfinity);
  for (size_t k = 0; k < logits.size(); k += kLanes) {
    max = Max(max, LoadPadded(logits, k, kNegativeInfinity));
  }
  const float highest = Max(max);
  const Lanes offset = Broadcast(highest);
  double total = 0.0;
  for (size_t begin = 0; begin < logits.size(); begin += kRun) {
    const size_t end = std::min(begin + kRun, logits.size());
    Lanes sum = Zero();
    for (size_t k = begin; k < end; k += kLanes) {
      const Lanes x = LoadPadded(logits, k, kNegativeInfinity);
      sum = Add(sum, Exp(Subtract(x, offset)));
    }
    total += static_cast<double>(Sum(sum));
  }
  return static_cast<double>(highest) + Log(total);
}

float LogProb(std::span<const float> logits, double log_sum_exp, int32_t id) {
  return static_cast<float>(static_cast<double>(logits[id]) - log_sum_exp);
}

bool AllFinite(std::span<const float> logits) {
  __m256 bad = _mm256_setzero_ps();
  for (size_t k = 0; k < logits.size(); k += kLanes) {
    bad = _mm256_or_ps(bad, NonFinite(LoadPadded(logits, k, 0.0f)));
  }
  return _mm256_movemask_ps(bad) == 0;
}

}  // namespace invar::cpu
