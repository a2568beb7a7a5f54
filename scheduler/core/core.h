// The scheduler's decisions, as a pure state machine: no clock, thread, socket
// or random source inside, so that a seed reproduces every run of it.
//
// Invariants (checked by core/simulation_test.cc):
//   * every request that arrived ends in exactly one Finish;
//   * its tokens are delivered in order, none lost, repeated or changed, over
//     any number of lost workers;
//   * the tokens of one answer come from workers of one fingerprint;
//   * no worker is sent more than its credits.
#ifndef INVAR_SCHEDULER_CORE_CORE_H_
#define INVAR_SCHEDULER_CORE_CORE_H_

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "invar/v1/admin.pb.h"
#include "invar/v1/config.pb.h"
#include "scheduler/core/types.h"

namespace invar::scheduler {

class Core {
 public:
  struct Options {
    v1::Limits limits;  // defaults resolved
    v1::Determinism::Mode mode = v1::Determinism::DETERMINISTIC;
    std::string tokenizer_digest;  // workers with another are refused
  };

  explicit Core(Options options) : options_(std::move(options)) {}

  // Takes one event and returns what is to be done, in order. `now` never
  // goes back.
  std::vector<Action> Step(const Event& event, absl::Time now);

  // --- What can be seen from outside ---------------------------------------

  // Every attached worker, by worker id.
  std::vector<v1::WorkerInfo> Workers(absl::Time now) const;
  // The fingerprint that new requests run on; empty: none.
  std::string PrimaryFingerprint() const;
  // Its numerics; null without one.
  const v1::Numerics* PrimaryNumerics() const;
  // Positions that a sequence may have; 0 without a worker.
  int32_t MaxContextTokens() const;
  int64_t queued() const { return queued_; }
  int64_t running() const {
    return static_cast<int64_t>(requests_.size()) - queued_;
  }

 private:
  struct Worker {
    LinkNumber link = 0;
    worker::v1::Hello hello;
    int64_t epoch = 0;
    v1::WorkerInfo::State state = v1::WorkerInfo::LOADING;
    v1::Numerics numerics;
    worker::v1::Capacity capacity;
    int32_t max_context_tokens = 0;
    int64_t granted_sequences = 0;  // cumulative, as link.proto says
    int64_t granted_kv_tokens = 0;
    int64_t spent_sequences = 0;
    int64_t spent_kv_tokens = 0;
    int64_t first_kv_tokens = 0;  // the most it can ever grant at once
    worker::v1::Heartbeat heartbeat;
    absl::Time last_beat;
    std::set<RequestNumber> running;

    bool admitted() const {
      return state == v1::WorkerInfo::READY ||
             state == v1::WorkerInfo::DRAINING;
    }
    int64_t free_sequences() const {
      return granted_sequences - spent_sequences;
    }
    int64_t free_kv_tokens() const {
      return granted_kv_tokens - spent_kv_tokens;
    }
  };

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
  };

  void On(const RequestArrived& event);
  void On(const RequestAbandoned& event);
  void On(const WorkerAttached& event);
  void On(const WorkerLoaded& event);
  void On(const WorkerLoadFailed& event);
  void On(const WorkerBeat& event);
  void On(const WorkerReported& event);
  void On(const WorkerLeaving& event);
  void On(const WorkerLost& event);
  void On(const WorkerDrained& event);
  void On(const WorkerResumed& event);
  void On(const Tick& event);

  // Says why a request cannot be taken, or nothing.
  std::optional<Finish> WhyNot(const RequestSpec& spec) const;
  // Sends queued requests, first come first served, while credits last.
  void Dispatch();
  // False: the request has to wait, and so has its whole queue.
  bool TryDispatch(Request* request, const std::string& pool);
  void Submit(Request* request, Worker* worker);
  enum class End { kHead, kTail };
  void Enqueue(Request* request, End end);
  void Dequeue(Request* request);
  void OnAttempt(Worker* worker, const worker::v1::AttemptReport& report);
  bool DeliverNew(Request* request, worker::v1::AttemptReport report);
  void EndAttempt(Request* request, const worker::v1::Terminal& terminal);
  // Forgets a worker; its requests go back to the head of the queue.
  void Lose(LinkNumber link, const std::string& reason);
  void FinishRequest(Request* request, Finish finish);
  void Forget(RequestNumber number);
  Finish Failed(absl::StatusCode code, std::string reason,
                std::string message) const;
  void ExpireQueued();
  void UpdateReadiness();
  Worker* FindWorker(LinkNumber link);
  Worker* FindWorker(const std::string& worker_id);
  const Worker* Primary() const;
  int64_t KvCost(const Request& request, const Worker& worker) const;
  absl::Duration RetryAfter() const;
  void Emit(Action action) { actions_.push_back(std::move(action)); }
  void Info(std::string text);
  void Warn(std::string text);

  Options options_;
  absl::Time now_ = absl::InfinitePast();
  std::vector<Action> actions_;
  std::map<LinkNumber, Worker> workers_;
  std::map<std::string, int64_t> epochs_;  // by worker id
  std::map<RequestNumber, Request> requests_;
  std::set<std::string> ids_in_flight_;
  std::map<std::string, std::list<RequestNumber>> queues_;  // by fingerprint
  int64_t queued_ = 0;
  absl::Duration mean_duration_ = absl::Seconds(1);  // of finished requests
  bool ready_ = false;
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_CORE_CORE_H_
