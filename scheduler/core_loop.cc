#include "scheduler/core_loop.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

namespace invar::scheduler {
namespace {

// How often the core looks at deadlines and heartbeats; well under the
// shortest heartbeat timeout that the config allows.
constexpr absl::Duration kTick = absl::Milliseconds(50);

}  // namespace

CoreLoop::CoreLoop(Core::Options options, ActionHandler* handler)
    : handler_(handler),
      core_(std::move(options)),
      thread_([this] { Run(); }) {}

void CoreLoop::Stop() {
  {
    absl::MutexLock lock(&inbox_mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void CoreLoop::Post(Event event) {
  absl::MutexLock lock(&inbox_mutex_);
  inbox_.push_back(std::move(event));
}

void CoreLoop::Run() {
  absl::Time now = absl::Now();
  absl::Time next_tick = now;
  while (true) {
    std::deque<Event> events;
    {
      absl::MutexLock lock(&inbox_mutex_);
      inbox_mutex_.AwaitWithDeadline(absl::Condition(this, &CoreLoop::HasWork),
                                     next_tick);
      if (stopping_) return;
      events.swap(inbox_);
    }
    // The wall clock may step back; the core's time does not.
    now = std::max(now, absl::Now());
    if (now >= next_tick) {
      events.push_back(Tick{});
      next_tick = now + kTick;
    }
    for (const Event& event : events) {
      std::vector<Action> actions;
      {
        absl::MutexLock lock(&core_mutex_);
        actions = core_.Step(event, now);
      }
      for (Action& action : actions) handler_->Handle(std::move(action));
    }
  }
}

}  // namespace invar::scheduler
