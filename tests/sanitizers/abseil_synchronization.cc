// Tells ThreadSanitizer what absl::Mutex and absl::CondVar order.
//
// A distribution's Abseil is not instrumented: without help TSan sees neither
// its locks nor its waits, and reports a race at every use. Each function here
// takes the place of Abseil's, for this program and for the shared libraries
// it loads (gRPC's locks are Abseil's too); it tells TSan what happens and
// calls Abseil's own. Nothing is held to be ordered that a lock does not order,
// so a race beside a lock is still found: planted_race.cc.
#include <sanitizer/tsan_interface.h>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "tests/sanitizers/real.h"

namespace {

using invar::Real;

constexpr unsigned kWrite = 0;
constexpr unsigned kRead = __tsan_mutex_read_lock;
constexpr unsigned kTry = __tsan_mutex_try_lock;

// While one of these lives, TSan ignores what the thread does: Abseil's own
// accesses, and conditions, which any thread may evaluate in its unlocking.
class Locking {
 public:
  Locking(void* mutex, unsigned how) : mutex_(mutex), how_(how) {
    __tsan_mutex_pre_lock(mutex_, how_);
  }
  ~Locking() {
    const unsigned failed = taken_ ? 0 : __tsan_mutex_try_lock_failed;
    __tsan_mutex_post_lock(mutex_, how_ | failed, /*recursion=*/0);
  }
  bool Taken(bool taken) { return taken_ = taken; }

 private:
  void* const mutex_;
  const unsigned how_;
  bool taken_ = true;
};

class Unlocking {
 public:
  Unlocking(void* mutex, unsigned how) : mutex_(mutex), how_(how) {
    __tsan_mutex_pre_unlock(mutex_, how_);
  }
  ~Unlocking() { __tsan_mutex_post_unlock(mutex_, how_); }

 private:
  void* const mutex_;
  const unsigned how_;
};

// Waiting gives the mutex back and takes it again. Only writers wait in Invar
// and gRPC; a reader would be reported as an unlock of what it did not lock.
void GiveBack(void* mutex) { const Unlocking unlocking(mutex, kWrite); }

void* NotifiedFlag(const absl::Notification* notification) {
  // HasBeenNotified, which is inline, reads the flag behind the mutex.
  return const_cast<char*>(reinterpret_cast<const char*>(notification)) +
         sizeof(absl::Mutex);
}

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  static const auto real = Real(&Mutex::Lock);
  const Locking locking(this, kWrite);
  (this->*real)();
}

void Mutex::Unlock() {
  static const auto real = Real(&Mutex::Unlock);
  const Unlocking unlocking(this, kWrite);
  (this->*real)();
}

bool Mutex::TryLock() {
  static const auto real = Real(&Mutex::TryLock);
  Locking locking(this, kWrite | kTry);
  return locking.Taken((this->*real)());
}

void Mutex::ReaderLock() {
  static const auto real = Real(&Mutex::ReaderLock);
  const Locking locking(this, kRead);
  (this->*real)();
}

void Mutex::ReaderUnlock() {
  static const auto real = Real(&Mutex::ReaderUnlock);
  const Unlocking unlocking(this, kRead);
  (this->*real)();
}

bool Mutex::ReaderTryLock() {
  static const auto real = Real(&Mutex::ReaderTryLock);
  Locking locking(this, kRead | kTry);
  return locking.Taken((this->*real)());
}

void Mutex::LockWhen(const Condition& condition) {
  static const auto real = Real(&Mutex::LockWhen);
  const Locking locking(this, kWrite);
  (this->*real)(condition);
}

bool Mutex::LockWhenWithDeadline(const Condition& condition, Time deadline) {
  static const auto real = Real(&Mutex::LockWhenWithDeadline);
  const Locking locking(this, kWrite);
  return (this->*real)(condition, deadline);
}

bool Mutex::LockWhenWithTimeout(const Condition& condition, Duration timeout) {
  return LockWhenWithDeadline(condition, Now() + timeout);
}

void Mutex::ReaderLockWhen(const Condition& condition) {
  static const auto real = Real(&Mutex::ReaderLockWhen);
  const Locking locking(this, kRead);
  (this->*real)(condition);
}

bool Mutex::ReaderLockWhenWithDeadline(const Condition& condition,
                                       Time deadline) {
  static const auto real = Real(&Mutex::ReaderLockWhenWithDeadline);
  const Locking locking(this, kRead);
  return (this->*real)(condition, deadline);
}

bool Mutex::ReaderLockWhenWithTimeout(const Condition& condition,
                                      Duration timeout) {
  return ReaderLockWhenWithDeadline(condition, Now() + timeout);
}

void Mutex::Await(const Condition& condition) {
  static const auto real = Real(&Mutex::Await);
  GiveBack(this);
  const Locking locking(this, kWrite);
  (this->*real)(condition);
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  static const auto real = Real(&Mutex::AwaitWithDeadline);
  GiveBack(this);
  const Locking locking(this, kWrite);
  return (this->*real)(condition, deadline);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  return AwaitWithDeadline(condition, Now() + timeout);
}

void CondVar::Wait(Mutex* mutex) {
  static const auto real = Real(&CondVar::Wait);
  GiveBack(mutex);
  const Locking locking(mutex, kWrite);
  (this->*real)(mutex);
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  static const auto real = Real(&CondVar::WaitWithDeadline);
  GiveBack(mutex);
  const Locking locking(mutex, kWrite);
  return (this->*real)(mutex, deadline);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  return WaitWithDeadline(mutex, Now() + timeout);
}

void Notification::Notify() {
  static const auto real = Real(&Notification::Notify);
  __tsan_release(NotifiedFlag(this));
  (this->*real)();
}

// Those who waited for it took the lock that Notify held, or read the flag in
// Abseil's code.
void Notification::WaitForNotification() const {
  static const auto real = Real(&Notification::WaitForNotification);
  (this->*real)();
  __tsan_acquire(NotifiedFlag(this));
}

bool Notification::WaitForNotificationWithDeadline(Time deadline) const {
  static const auto real = Real(&Notification::WaitForNotificationWithDeadline);
  const bool notified = (this->*real)(deadline);
  if (notified) __tsan_acquire(NotifiedFlag(this));
  return notified;
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  return WaitForNotificationWithDeadline(Now() + timeout);
}

ABSL_NAMESPACE_END
}  // namespace absl
