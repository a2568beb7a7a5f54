// How a load of weights shows that it is getting on.
#ifndef INVAR_WORKER_LOAD_PROGRESS_H_
#define INVAR_WORKER_LOAD_PROGRESS_H_

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace invar {

// "1.25 of 4.00 GiB  31%  1.31 GiB/s  0:02 left".
std::string LoadProgressText(int64_t done, int64_t total,
                             absl::Duration elapsed);

// A bar that redraws itself on a terminal; elsewhere a line of the log a
// second. Thread-safe.
class LoadProgress {
 public:
  // `terminal`: where the bar is drawn; null where no person looks on.
  LoadProgress(std::ostream* terminal, absl::Time start)
      : terminal_(terminal), start_(start) {}
  // Ends the line of a bar whose load did not come to its end.
  ~LoadProgress();

  // Calls may overtake each other: one that is behind is dropped.
  void Show(int64_t done, int64_t total, absl::Time now);

 private:
  std::ostream* const terminal_;
  const absl::Time start_;
  absl::Mutex mutex_;
  int64_t done_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<absl::Time> shown_ ABSL_GUARDED_BY(mutex_);
  bool bar_drawn_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace invar

#endif  // INVAR_WORKER_LOAD_PROGRESS_H_
