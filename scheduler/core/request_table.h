// The requests that a scheduler holds, as its core sees them, and the queues
// of those that wait.
#ifndef INVAR_SCHEDULER_CORE_REQUEST_TABLE_H_
#define INVAR_SCHEDULER_CORE_REQUEST_TABLE_H_

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "scheduler/core/types.h"

namespace invar::scheduler {

struct Request {
  std::shared_ptr<const RequestSpec> spec;
  int32_t attempt = 0;
  LinkNumber link = 0;  // 0: queued
  // The pool that must serve it: set once an output token is delivered.
  // Empty: any, and then the primary. It also names its queue.
  std::string fingerprint;
  std::vector<int32_t> delivered;
  int32_t max_tokens = 0;
  int32_t prompt_logprobs_delivered = 0;
  absl::Time arrived;
  absl::Time stranded_since = absl::InfiniteFuture();
  int32_t losses = 0;                        // workers that died with it
  std::list<RequestNumber>::iterator place;  // in its queue, if queued

  int64_t prompt_tokens() const {
    return static_cast<int64_t>(spec->prompt.size());
  }
  // Prompt and delivered output: what a worker is sent.
  int64_t submit_tokens() const {
    return prompt_tokens() + static_cast<int64_t>(delivered.size());
  }
  // Prompt and all possible output.
  int64_t most_tokens() const { return prompt_tokens() + max_tokens; }
};

// A Request* stays valid until the request is taken out.
class RequestTable {
 public:
  enum class End { kHead, kTail };
  // By the fingerprint that must serve them; empty: any. In order of arrival.
  using Queues = std::map<std::string, std::list<RequestNumber>>;

  // Puts a request in, at the tail of its queue.
  void Add(Request request);
  // Takes a request out, also out of its queue.
  void Remove(RequestNumber number);
  // Null if there is none.
  Request* Find(RequestNumber number);

  void Enqueue(Request* request, End end);
  void Dequeue(Request* request);
  Queues& queues() { return queues_; }
  void DropEmptyQueues();

  bool IsInFlight(const std::string& request_id) const {
    return ids_in_flight_.contains(request_id);
  }
  int64_t queued() const { return queued_; }
  int64_t running() const {
    return static_cast<int64_t>(requests_.size()) - queued_;
  }

 private:
  std::map<RequestNumber, Request> requests_;
  std::set<std::string> ids_in_flight_;
  Queues queues_;
  int64_t queued_ = 0;
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_CORE_REQUEST_TABLE_H_
