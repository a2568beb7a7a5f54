// What is said of many values at once.
#ifndef INVAR_CLIENT_BENCH_STATISTICS_H_
#define INVAR_CLIENT_BENCH_STATISTICS_H_

#include <cstdint>
#include <vector>

namespace invar::bench {

// All zero over no values.
struct Distribution {
  int64_t count = 0;
  double mean = 0;
  double p50 = 0;
  double p90 = 0;
  double p95 = 0;
  double p99 = 0;
  double max = 0;
};

// The percentile by nearest rank: the least of the values that at least
// `percent` of a hundred values do not exceed. One that occurred, never one in
// between. `sorted` ascends and is not empty; percent is in [1, 100].
double Percentile(const std::vector<float>& sorted, int percent);

Distribution Describe(std::vector<float> values);

}  // namespace invar::bench

#endif  // INVAR_CLIENT_BENCH_STATISTICS_H_
