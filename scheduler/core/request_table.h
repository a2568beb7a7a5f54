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

// One of a request's answers.
struct Sequence {
  enum class State { kWaiting, kRunning, kEnded };
  int32_t index = 0;
  State state = State::kWaiting;
  LinkNumber link = 0;  // where it runs
  int32_t attempt = 0;
  int64_t submission =
      0;                // counts the submits of all; a worker keeps the order
  bool got_on = false;  // in this attempt
  std::vector<int32_t> delivered;  // resumed tokens included
};

struct Request {
  std::shared_ptr<const RequestSpec> spec;
  std::vector<Sequence> sequences;  // by index
  // The pool that must serve it: that of the worker that runs a part of it or
  // has delivered a token, or the one that the client expects. Empty: any, and
  // then the primary.
  std::string pool;
  // Whether that pool has not been there since the request arrived.
  bool pool_unseen = false;
  // As announced by Begin.
  std::string begun_in;
  int32_t max_tokens = 0;
  int32_t prompt_logprobs_delivered = 0;
  absl::Time arrived;
  absl::Time stranded_since = absl::InfiniteFuture();
  // Workers that died with it since it last got on: those it may have killed.
  int32_t losses = 0;

  // Its queue, if it is in one, and its place there.
  bool queued = false;
  std::string queue;
  std::list<RequestNumber>::iterator place;

  RequestNumber number() const { return spec->number; }
  int64_t prompt_tokens() const {
    return static_cast<int64_t>(spec->prompt.size());
  }
  // Prompt and delivered output: what a worker is sent.
  int64_t submit_tokens(const Sequence& sequence) const {
    return prompt_tokens() + static_cast<int64_t>(sequence.delivered.size());
  }
  // Prompt and all possible output of an answer.
  int64_t most_tokens() const { return prompt_tokens() + max_tokens; }
  // The first that waits for a worker; null: none does.
  Sequence* NextWaiting();
  bool Ended() const;
  // Whether a worker runs a part of it, or has written one or scored its
  // prompt: the rest must come from the same pool.
  bool Begun() const;
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

  // Queues a request by its pool; moves it if it is queued.
  void Enqueue(Request* request, End end);
  void Dequeue(Request* request);
  Queues& queues() { return queues_; }
  void DropEmptyQueues();

  bool IsInFlight(const std::string& request_id) const {
    return ids_in_flight_.contains(request_id);
  }
  // Requests of which some answer waits for a worker, and the others.
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
