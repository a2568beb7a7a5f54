// When requests are due in an open loop.
#ifndef INVAR_CLIENT_BENCH_ARRIVALS_H_
#define INVAR_CLIENT_BENCH_ARRIVALS_H_

#include <cstdint>

#include "absl/time/time.h"
#include "client/bench/random.h"

namespace invar::bench {

// A Poisson process: gaps are exponential, independent of what the server
// does. Equal seeds and rates give equal times.
class PoissonArrivals {
 public:
  // Requests a second, above 0, on average.
  PoissonArrivals(double rate, uint64_t seed);

  // The next arrival, counted from the start of the load.
  absl::Duration Next();

 private:
  const double rate_;
  Random random_;
  double seconds_ = 0;
};

}  // namespace invar::bench

#endif  // INVAR_CLIENT_BENCH_ARRIVALS_H_
