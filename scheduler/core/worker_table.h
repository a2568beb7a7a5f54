// The workers that are attached to a scheduler, as its core sees them.
#ifndef INVAR_SCHEDULER_CORE_WORKER_TABLE_H_
#define INVAR_SCHEDULER_CORE_WORKER_TABLE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "invar/v1/admin.pb.h"
#include "scheduler/core/types.h"

namespace invar::scheduler {

struct Worker {
  LinkNumber link = 0;
  worker::v1::Hello hello;
  int64_t epoch = 0;
  v1::WorkerInfo::State state = v1::WorkerInfo::LOADING;
  bool leaving = false;   // it said so: its end is no death
  int64_t admission = 0;  // counts admissions over all workers; 0: not yet
  v1::Numerics numerics;
  worker::v1::Capacity capacity;
  int32_t max_context_tokens = 0;
  int64_t granted_sequences = 0;  // cumulative, as link.proto says
  int64_t granted_kv_tokens = 0;
  int64_t spent_sequences = 0;
  int64_t spent_kv_tokens = 0;
  int64_t share_kv_tokens = 0;  // the most it can ever grant at once
  worker::v1::Heartbeat heartbeat;
  absl::Time last_beat;
  std::set<SequenceNumber> running;

  const std::string& id() const { return hello.worker_id(); }
  const std::string& fingerprint() const { return numerics.fingerprint(); }
  bool admitted() const {
    return state == v1::WorkerInfo::READY || state == v1::WorkerInfo::DRAINING;
  }
  int64_t free_sequences() const { return granted_sequences - spent_sequences; }
  int64_t free_kv_tokens() const { return granted_kv_tokens - spent_kv_tokens; }
  // Tokens of its whole cache, over all schedulers.
  int64_t kv_tokens() const {
    return capacity.kv_blocks() * capacity.block_tokens();
  }
  // What a submit of so many tokens costs: whole blocks.
  int64_t KvCost(int64_t tokens) const {
    const int64_t block = capacity.block_tokens();
    return (tokens + block - 1) / block * block;
  }

  void TakeGrant(const worker::v1::Credits& credits);
  v1::WorkerInfo Info(absl::Time now) const;
};

// A worker that was refused, and may be gone.
struct RefusedWorker {
  worker::v1::Hello hello;
  Refusal refusal;
  absl::Time at;

  v1::WorkerInfo Info() const;
};

// Finds workers. A Worker* stays valid until its link is taken out.
class WorkerTable {
 public:
  // A new worker, with the next epoch of its id.
  Worker& Add(LinkNumber link, const worker::v1::Hello& hello);
  // Takes a worker out; nothing if it is not there.
  std::optional<Worker> Remove(LinkNumber link);

  // Makes a loaded worker ready.
  void Admit(Worker* worker);

  // Null if there is none.
  Worker* Find(LinkNumber link);
  Worker* Find(const std::string& worker_id);

  // Whose fingerprint takes new requests: the worker that was admitted first.
  // During a rolling upgrade that is the old pool until its last worker drains
  // or leaves. Null: no worker is ready.
  const Worker* Primary() const;
  // Whether an admitted worker, draining or not, has this fingerprint.
  bool HasPool(const std::string& fingerprint) const;
  // The fingerprints that a request can be sent to.
  std::set<std::string> ReadyPools() const;

  // Remembers a refusal, for a while: a refused worker hangs up and dials
  // again, so that it is hardly ever seen attached. Whether it is news: the
  // worker was not told the same before.
  bool Refuse(const worker::v1::Hello& hello, const Refusal& refusal,
              absl::Time now);
  // Null: it was not, or has been admitted since.
  const RefusedWorker* FindRefused(const std::string& worker_id) const;
  // One that was refused because of its numerics, if there is no other worker
  // that serves, loads or drains: then no waiting helps. Null: there is none.
  const RefusedWorker* FindUnwilling() const;
  void ForgetRefusedBefore(absl::Time time);
  const std::map<std::string, RefusedWorker>& refused() const {
    return refused_;
  }

  std::map<LinkNumber, Worker>& all() { return workers_; }
  const std::map<LinkNumber, Worker>& all() const { return workers_; }

 private:
  std::map<LinkNumber, Worker> workers_;
  std::map<std::string, int64_t> epochs_;         // by worker id
  std::map<std::string, RefusedWorker> refused_;  // likewise
  int64_t admissions_ = 0;
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_CORE_WORKER_TABLE_H_
