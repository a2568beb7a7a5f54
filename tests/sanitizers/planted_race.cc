// What abseil_synchronization.cc must not hide, and what it must show:
//
//   planted_race locks      every use is ordered by a lock: no report
//   planted_race beside     a write just after a lock was given back: a report
#include <cstdio>
#include <string>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace {

struct Shared {
  absl::Mutex mutex;
  absl::CondVar changed;
  absl::Notification done;
  int count = 0;
  int after = 0;
};

void Increment(Shared& shared) {
  const absl::MutexLock lock(&shared.mutex);
  ++shared.count;
  shared.changed.SignalAll();
}

void Locks(Shared& shared) {
  std::thread first([&shared] { Increment(shared); });
  std::thread second([&shared] {
    for (bool taken = false; !taken;) {
      taken = shared.mutex.TryLock();
      if (!taken) continue;
      ++shared.count;
      shared.mutex.Unlock();
    }
  });
  std::thread third([&shared] {
    const auto both = [&shared] { return shared.count >= 2; };
    shared.mutex.LockWhen(absl::Condition(&both));
    ++shared.count;
    shared.changed.SignalAll();
    shared.mutex.Unlock();
  });
  std::thread fourth([&shared] {
    const absl::MutexLock lock(&shared.mutex);
    while (shared.count < 3) shared.changed.Wait(&shared.mutex);
    ++shared.count;
  });
  std::thread fifth([&shared] {
    const absl::MutexLock lock(&shared.mutex);
    const auto all = [&shared] { return shared.count == 4; };
    while (!shared.mutex.AwaitWithTimeout(absl::Condition(&all),
                                          absl::Milliseconds(1))) {
    }
    shared.after = shared.count;
    shared.done.Notify();
  });
  shared.done.WaitForNotification();
  std::printf("%d\n", shared.after);
  {
    const absl::ReaderMutexLock lock(&shared.mutex);
    std::printf("%d\n", shared.count);
  }
  for (std::thread* one : {&first, &second, &third, &fourth, &fifth}) {
    one->join();
  }
}

void Beside(Shared& shared) {
  const auto increment = [&shared] {
    shared.mutex.Lock();
    shared.mutex.Unlock();
    ++shared.count;
  };
  std::thread first(increment);
  std::thread second(increment);
  first.join();
  second.join();
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc == 2 ? argv[1] : "";
  Shared shared;
  if (what == "locks") {
    Locks(shared);
  } else if (what == "beside") {
    Beside(shared);
  } else {
    std::fprintf(stderr, "usage: planted_race locks|beside\n");
    return 2;
  }
  return 0;
}
