#include "common/stop_signals.h"

#include <pthread.h>

namespace invar {

StopSignals::StopSignals() {
  sigemptyset(&set_);
  sigaddset(&set_, SIGTERM);
  sigaddset(&set_, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set_, nullptr);
}

bool StopSignals::Wait(absl::Duration duration) {
  const timespec timeout = absl::ToTimespec(duration);
  return sigtimedwait(&set_, nullptr, &timeout) > 0;
}

}  // namespace invar
