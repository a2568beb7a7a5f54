// SIGTERM and SIGINT as something to wait for.
#ifndef INVAR_COMMON_STOP_SIGNALS_H_
#define INVAR_COMMON_STOP_SIGNALS_H_

#include <signal.h>

#include "absl/time/time.h"

namespace invar {

// Blocks the two signals in this thread and in those that it starts later, so
// that one thread can wait for them. Make it before any other thread.
class StopSignals {
 public:
  StopSignals();

  // Whether one comes within `duration`.
  bool Wait(absl::Duration duration);

 private:
  sigset_t set_;
};

}  // namespace invar

#endif  // INVAR_COMMON_STOP_SIGNALS_H_
