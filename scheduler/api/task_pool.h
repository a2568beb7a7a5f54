// Threads for work that must not run on the core's thread: tokenizing.
#ifndef INVAR_SCHEDULER_API_TASK_POOL_H_
#define INVAR_SCHEDULER_API_TASK_POOL_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace invar::scheduler {

// First in, first out. Thread-safe.
class TaskPool {
 public:
  explicit TaskPool(int threads);
  ~TaskPool() { Stop(); }

  // Runs what is queued and ends the threads. Call from one thread, once no
  // task is submitted any more.
  void Stop();
  void Submit(std::function<void()> task);

 private:
  void Run();
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !tasks_.empty();
  }

  absl::Mutex mutex_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_API_TASK_POOL_H_
