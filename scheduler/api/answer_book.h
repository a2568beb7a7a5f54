// The answers in flight, by request number.
#ifndef INVAR_SCHEDULER_API_ANSWER_BOOK_H_
#define INVAR_SCHEDULER_API_ANSWER_BOOK_H_

#include <map>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "scheduler/api/answer.h"
#include "scheduler/core/types.h"

namespace invar::scheduler {

// Thread-safe. An answer is put in by the thread that read the request, before
// the core hears of it; it is used and taken out by the core loop's thread.
class AnswerBook {
 public:
  void Insert(RequestNumber request, std::unique_ptr<Answer> answer) {
    absl::MutexLock lock(&mutex_);
    answers_[request] = std::move(answer);
  }
  // Null if there is none. Stays valid until Erase.
  Answer* Find(RequestNumber request) {
    absl::MutexLock lock(&mutex_);
    const auto found = answers_.find(request);
    return found == answers_.end() ? nullptr : found->second.get();
  }
  void Erase(RequestNumber request) {
    absl::MutexLock lock(&mutex_);
    answers_.erase(request);
  }

 private:
  absl::Mutex mutex_;
  std::map<RequestNumber, std::unique_ptr<Answer>> answers_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_API_ANSWER_BOOK_H_
