#include "scheduler/core/request_table.h"

#include <algorithm>
#include <utility>

namespace invar::scheduler {

Sequence* Request::NextWaiting() {
  for (Sequence& sequence : sequences) {
    if (sequence.state == Sequence::State::kWaiting) return &sequence;
  }
  return nullptr;
}

bool Request::Ended() const {
  return std::all_of(sequences.begin(), sequences.end(),
                     [](const Sequence& sequence) {
                       return sequence.state == Sequence::State::kEnded;
                     });
}

bool Request::Begun() const {
  if (prompt_logprobs_delivered > 0) return true;
  return std::any_of(sequences.begin(), sequences.end(),
                     [](const Sequence& sequence) {
                       return sequence.state != Sequence::State::kWaiting ||
                              !sequence.delivered.empty();
                     });
}

void RequestTable::Add(Request request) {
  const RequestNumber number = request.number();
  ids_in_flight_.insert(request.spec->request_id);
  Enqueue(&requests_.emplace(number, std::move(request)).first->second,
          End::kTail);
}

void RequestTable::Remove(RequestNumber number) {
  const auto found = requests_.find(number);
  if (found == requests_.end()) return;
  Dequeue(&found->second);
  ids_in_flight_.erase(found->second.spec->request_id);
  requests_.erase(found);
}

Request* RequestTable::Find(RequestNumber number) {
  const auto found = requests_.find(number);
  return found == requests_.end() ? nullptr : &found->second;
}

void RequestTable::Enqueue(Request* request, End end) {
  Dequeue(request);
  auto& queue = queues_[request->pool];
  request->queue = request->pool;
  request->place = queue.insert(end == End::kHead ? queue.begin() : queue.end(),
                                request->number());
  request->queued = true;
  ++queued_;
}

void RequestTable::Dequeue(Request* request) {
  if (!request->queued) return;
  queues_[request->queue].erase(request->place);
  request->queued = false;
  --queued_;
}

void RequestTable::DropEmptyQueues() {
  std::erase_if(queues_,
                [](const auto& entry) { return entry.second.empty(); });
}

}  // namespace invar::scheduler
