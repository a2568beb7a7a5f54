#include "client/bench/arrivals.h"

#include <cmath>

namespace invar::bench {
namespace {

constexpr uint64_t kArrivalStream = 0xa7717a15;

}  // namespace

PoissonArrivals::PoissonArrivals(double rate, uint64_t seed)
    : rate_(rate), random_(seed, kArrivalStream) {}

absl::Duration PoissonArrivals::Next() {
  seconds_ += -std::log(random_.Unit()) / rate_;
  return absl::Seconds(seconds_);
}

}  // namespace invar::bench
