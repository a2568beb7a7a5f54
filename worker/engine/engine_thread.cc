#include "worker/engine/engine_thread.h"

#include <utility>

#include "worker/engine/steady_clock.h"

namespace invar {

EngineThread::EngineThread(std::unique_ptr<Engine> engine, Progress* progress,
                           StepObserver observer)
    : engine_(std::move(engine)),
      progress_(progress),
      observer_(std::move(observer)),
      thread_([this] { Run(); }) {}

EngineThread::~EngineThread() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

SessionId EngineThread::Open(int place, ReportSink sink) {
  SessionId session;
  {
    absl::MutexLock lock(&mutex_);
    session = ++last_session_;
  }
  Post([session, place, sink = std::move(sink)](Engine& engine) {
    engine.Open(session, place, sink);
  });
  return session;
}

void EngineThread::Close(SessionId session) {
  Post([session](Engine& engine) { engine.Close(session); });
}

void EngineThread::Submit(SessionId session, worker::v1::Submit submit) {
  Post([session, submit = std::move(submit), received = SteadyNow()](
           Engine& engine) { engine.Submit(session, submit, received); });
}

void EngineThread::Refuse(SessionId session, worker::v1::Submit submit,
                          worker::v1::Terminal::Reason reason,
                          absl::string_view message) {
  submit.clear_token_ids();
  Post([session, submit = std::move(submit), reason,
        message = std::string(message)](Engine& engine) {
    engine.Refuse(session, submit, reason, message);
  });
}

void EngineThread::Cancel(SessionId session,
                          const worker::v1::AttemptKey& key) {
  Post([session, key](Engine& engine) { engine.Cancel(session, key); });
}

void EngineThread::Preempt(SessionId session,
                           const worker::v1::AttemptKey& key) {
  Post([session, key](Engine& engine) { engine.Preempt(session, key); });
}

bool EngineThread::WaitUntilIdle(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  const auto idle = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return idle_ && inbox_.empty();
  };
  return mutex_.AwaitWithTimeout(absl::Condition(&idle), timeout);
}

void EngineThread::Post(Command command) {
  absl::MutexLock lock(&mutex_);
  inbox_.push_back(std::move(command));
}

void EngineThread::Run() {
  const auto has_work = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !idle_ || !inbox_.empty();
  };
  while (true) {
    std::vector<Command> commands;
    {
      absl::MutexLock lock(&mutex_, absl::Condition(&has_work));
      if (stopping_) return;
      commands.swap(inbox_);
      idle_ = false;
    }
    for (const Command& command : commands) command(*engine_);
    // Also with nothing left to compute: the commands may have ended sequences.
    const absl::Time start = SteadyNow();
    progress_->StepBegins(absl::ToUnixMillis(start));
    const StepSummary summary = engine_->Step(start);
    if (observer_) {
      observer_(summary, absl::ToDoubleSeconds(SteadyNow() - start));
    }
    progress_->StepEnded(engine_->steps(), engine_->kv_blocks_used());
    absl::MutexLock lock(&mutex_);
    idle_ = engine_->idle();
  }
}

}  // namespace invar
