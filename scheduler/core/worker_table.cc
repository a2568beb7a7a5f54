#include "scheduler/core/worker_table.h"

#include <algorithm>
#include <utility>

namespace invar::scheduler {

void Worker::TakeGrant(const worker::v1::Credits& credits) {
  // Grants only grow: an older report cannot take one back.
  granted_sequences = std::max(granted_sequences, credits.sequences());
  granted_kv_tokens = std::max(granted_kv_tokens, credits.kv_tokens());
}

v1::WorkerInfo Worker::Info(absl::Time now) const {
  v1::WorkerInfo info;
  info.set_worker_id(id());
  info.set_device(hello.device());
  info.set_state(state);
  if (admitted()) *info.mutable_numerics() = numerics;
  info.set_epoch(epoch);
  info.set_running_sequences(static_cast<int32_t>(running.size()));
  info.set_free_sequences(free_sequences());
  info.set_free_kv_tokens(free_kv_tokens());
  info.set_steps(heartbeat.steps());
  info.set_heartbeat_age_ms(absl::ToInt64Milliseconds(now - last_beat));
  info.set_kv_blocks_used(heartbeat.kv_blocks_used());
  info.set_kv_blocks_total(capacity.kv_blocks());
  return info;
}

Worker& WorkerTable::Add(LinkNumber link, const worker::v1::Hello& hello) {
  Worker& worker = workers_[link];
  worker.link = link;
  worker.hello = hello;
  worker.epoch = ++epochs_[hello.worker_id()];
  return worker;
}

std::optional<Worker> WorkerTable::Remove(LinkNumber link) {
  const auto found = workers_.find(link);
  if (found == workers_.end()) return std::nullopt;
  Worker worker = std::move(found->second);
  workers_.erase(found);
  return worker;
}

v1::WorkerInfo RefusedWorker::Info() const {
  v1::WorkerInfo info;
  info.set_worker_id(hello.worker_id());
  info.set_device(hello.device());
  info.set_state(v1::WorkerInfo::REFUSED);
  info.set_reason(refusal.text);
  return info;
}

bool WorkerTable::Refuse(const worker::v1::Hello& hello, const Refusal& refusal,
                         absl::Time now) {
  const RefusedWorker* before = FindRefused(hello.worker_id());
  const bool news = before == nullptr || before->refusal.text != refusal.text;
  refused_[hello.worker_id()] = {hello, refusal, now};
  return news;
}

const RefusedWorker* WorkerTable::FindRefused(
    const std::string& worker_id) const {
  const auto found = refused_.find(worker_id);
  return found == refused_.end() ? nullptr : &found->second;
}

const RefusedWorker* WorkerTable::FindUnwilling() const {
  for (const auto& [link, worker] : workers_) {
    if (FindRefused(worker.id()) == nullptr) return nullptr;
  }
  for (const auto& [id, refused] : refused_) {
    if (refused.refusal.error_reason == kNumericsNotHonoured) return &refused;
  }
  return nullptr;
}

void WorkerTable::ForgetRefusedBefore(absl::Time time) {
  std::erase_if(refused_,
                [&](const auto& entry) { return entry.second.at < time; });
}

void WorkerTable::Admit(Worker* worker) {
  refused_.erase(worker->id());
  worker->state = v1::WorkerInfo::READY;
  worker->admission = ++admissions_;
}

Worker* WorkerTable::Find(LinkNumber link) {
  const auto found = workers_.find(link);
  return found == workers_.end() ? nullptr : &found->second;
}

Worker* WorkerTable::Find(const std::string& worker_id) {
  for (auto& [link, worker] : workers_) {
    if (worker.id() == worker_id) return &worker;
  }
  return nullptr;
}

const Worker* WorkerTable::Primary() const {
  const Worker* first = nullptr;
  for (const auto& [link, worker] : workers_) {
    if (worker.state != v1::WorkerInfo::READY) continue;
    if (first == nullptr || worker.admission < first->admission) {
      first = &worker;
    }
  }
  return first;
}

bool WorkerTable::HasPool(const std::string& fingerprint) const {
  return std::any_of(workers_.begin(), workers_.end(), [&](const auto& entry) {
    return entry.second.admitted() && entry.second.fingerprint() == fingerprint;
  });
}

std::set<std::string> WorkerTable::ReadyPools() const {
  std::set<std::string> pools;
  for (const auto& [link, worker] : workers_) {
    if (worker.state == v1::WorkerInfo::READY) {
      pools.insert(worker.fingerprint());
    }
  }
  return pools;
}

}  // namespace invar::scheduler
