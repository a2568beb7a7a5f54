#include "scheduler/core/request_table.h"

#include <utility>

namespace invar::scheduler {

void RequestTable::Add(Request request) {
  const RequestNumber number = request.spec->number;
  ids_in_flight_.insert(request.spec->request_id);
  Enqueue(&requests_.emplace(number, std::move(request)).first->second,
          End::kTail);
}

void RequestTable::Remove(RequestNumber number) {
  const auto found = requests_.find(number);
  if (found == requests_.end()) return;
  if (found->second.link == 0) Dequeue(&found->second);
  ids_in_flight_.erase(found->second.spec->request_id);
  requests_.erase(found);
}

Request* RequestTable::Find(RequestNumber number) {
  const auto found = requests_.find(number);
  return found == requests_.end() ? nullptr : &found->second;
}

void RequestTable::Enqueue(Request* request, End end) {
  auto& queue = queues_[request->fingerprint];
  request->link = 0;
  request->place = queue.insert(end == End::kHead ? queue.begin() : queue.end(),
                                request->spec->number);
  ++queued_;
}

void RequestTable::Dequeue(Request* request) {
  queues_[request->fingerprint].erase(request->place);
  --queued_;
}

void RequestTable::DropEmptyQueues() {
  std::erase_if(queues_,
                [](const auto& entry) { return entry.second.empty(); });
}

}  // namespace invar::scheduler
