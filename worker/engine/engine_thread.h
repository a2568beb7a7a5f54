// The one thread that runs an engine, and the inbox in front of it.
#ifndef INVAR_WORKER_ENGINE_ENGINE_THREAD_H_
#define INVAR_WORKER_ENGINE_ENGINE_THREAD_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "invar/worker/v1/link.pb.h"
#include "worker/engine/engine.h"
#include "worker/engine/progress.h"

namespace invar {

// Thread-safe. A call leaves a command in the inbox and returns; the thread
// carries all of them out between two steps. So a cancel, an expired deadline
// and a lost scheduler take effect after at most one step.
class EngineThread {
 public:
  using StepObserver = std::function<void(const StepSummary&, double seconds)>;

  // `progress` and what `observer` touches must outlive this. The observer runs
  // on the engine's thread after each step.
  EngineThread(std::unique_ptr<Engine> engine, Progress* progress,
               StepObserver observer);
  // Ends after the running step; sequences still there are dropped.
  ~EngineThread();

  // Immutable facts: options, model, shares.
  const Engine& facts() const { return *engine_; }

  // Begins a session of scheduler `place`; `sink` runs on the engine's thread
  // and must not block.
  SessionId Open(int place, ReportSink sink);
  void Close(SessionId session);
  void Submit(SessionId session, worker::v1::Submit submit);
  // Takes a submit, whole or not, only to end it.
  void Refuse(SessionId session, worker::v1::Submit submit,
              worker::v1::Terminal::Reason reason, absl::string_view message);
  void Cancel(SessionId session, const worker::v1::AttemptKey& key);
  void Preempt(SessionId session, const worker::v1::AttemptKey& key);

  // Waits until no command, sequence or report is left; false on timeout.
  bool WaitUntilIdle(absl::Duration timeout);

 private:
  using Command = std::function<void(Engine&)>;

  void Post(Command command);
  void Run();

  const std::unique_ptr<Engine> engine_;
  Progress* const progress_;
  const StepObserver observer_;

  absl::Mutex mutex_;
  std::vector<Command> inbox_ ABSL_GUARDED_BY(mutex_);
  SessionId last_session_ ABSL_GUARDED_BY(mutex_) = 0;
  bool idle_ ABSL_GUARDED_BY(mutex_) = true;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace invar

#endif  // INVAR_WORKER_ENGINE_ENGINE_THREAD_H_
