// Runs the core: one thread, one event at a time, each action in order.
#ifndef INVAR_SCHEDULER_CORE_LOOP_H_
#define INVAR_SCHEDULER_CORE_LOOP_H_

#include <deque>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "scheduler/core/core.h"

namespace invar::scheduler {

// Carries out what the core decides. Called by the loop's thread alone; must
// not block.
class ActionHandler {
 public:
  virtual ~ActionHandler() = default;
  virtual void Handle(Action action) = 0;
};

// Thread-safe. The core lives behind one mutex that is held for a Step or a
// look, never while an action is carried out.
class CoreLoop {
 public:
  // `handler` must outlive the loop.
  CoreLoop(Core::Options options, ActionHandler* handler);
  ~CoreLoop() { Stop(); }

  // Ends the thread; events not yet taken, or posted later, are dropped. Once
  // it returns, the handler is not called any more.
  void Stop();

  void Post(Event event);

  // Runs `look(core, now)` between two steps and returns its value.
  template <typename Look>
  auto Read(Look look) const {
    absl::MutexLock lock(&core_mutex_);
    return look(core_, absl::Now());
  }

 private:
  void Run();
  // Whether there is anything to do; called with inbox_mutex_ held.
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(inbox_mutex_) {
    return stopping_ || !inbox_.empty();
  }

  ActionHandler* const handler_;
  mutable absl::Mutex core_mutex_;
  Core core_ ABSL_GUARDED_BY(core_mutex_);
  absl::Mutex inbox_mutex_;
  std::deque<Event> inbox_ ABSL_GUARDED_BY(inbox_mutex_);
  bool stopping_ ABSL_GUARDED_BY(inbox_mutex_) = false;
  std::thread thread_;
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_CORE_LOOP_H_
