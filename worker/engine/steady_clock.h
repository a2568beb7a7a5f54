// The worker's clock: durations and deadlines must not follow a clock that
// somebody sets.
#ifndef INVAR_WORKER_ENGINE_STEADY_CLOCK_H_
#define INVAR_WORKER_ENGINE_STEADY_CLOCK_H_

#include <chrono>

#include "absl/time/time.h"

namespace invar {

// Since an arbitrary moment; comparable within the process alone.
inline absl::Time SteadyNow() {
  return absl::UnixEpoch() +
         absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

}  // namespace invar

#endif  // INVAR_WORKER_ENGINE_STEADY_CLOCK_H_
