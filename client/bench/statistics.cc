#include "client/bench/statistics.h"

#include <algorithm>
#include <numeric>

namespace invar::bench {

double Percentile(const std::vector<float>& sorted, int percent) {
  const size_t rank = (sorted.size() * percent + 99) / 100;  // From 1.
  return sorted[rank - 1];
}

Distribution Describe(std::vector<float> values) {
  Distribution distribution;
  if (values.empty()) return distribution;
  std::sort(values.begin(), values.end());
  distribution.count = static_cast<int64_t>(values.size());
  distribution.mean = std::accumulate(values.begin(), values.end(), 0.0) /
                      static_cast<double>(values.size());
  distribution.p50 = Percentile(values, 50);
  distribution.p90 = Percentile(values, 90);
  distribution.p95 = Percentile(values, 95);
  distribution.p99 = Percentile(values, 99);
  distribution.max = values.back();
  return distribution;
}

}  // namespace invar::bench
