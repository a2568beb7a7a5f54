// Where gRPC's threads leave what a thread of ours takes up.
#ifndef INVAR_CLIENT_INBOX_H_
#define INVAR_CLIENT_INBOX_H_

#include <deque>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace invar {

// Thread-safe.
template <typename Item>
class Inbox {
 public:
  void Put(Item item) {
    absl::MutexLock lock(&mutex_);
    items_.push_back(std::move(item));
  }

  // Waits until there is an item or the time has come; takes all there are.
  std::deque<Item> TakeUntil(absl::Time deadline) {
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithDeadline(
        absl::Condition(
            +[](std::deque<Item>* items) { return !items->empty(); }, &items_),
        deadline);
    return std::exchange(items_, {});
  }

 private:
  absl::Mutex mutex_;
  std::deque<Item> items_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace invar

#endif  // INVAR_CLIENT_INBOX_H_
