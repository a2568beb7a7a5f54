// The scheduler's decisions, as a pure state machine: no clock, thread, socket
// or random source inside, so that a seed reproduces every run of it.
//
// Invariants (checked by tests/simulation):
//   * every request that arrived ends in exactly one Finish;
//   * its tokens are delivered in order, none lost, repeated or changed, over
//     any number of lost workers;
//   * the answers of one request come from workers of one fingerprint;
//   * no worker is sent more than its credits.
//
// core.cc holds the step and what time does, core_requests.cc the life of a
// request, core_workers.cc that of a worker.
#ifndef INVAR_SCHEDULER_CORE_CORE_H_
#define INVAR_SCHEDULER_CORE_CORE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "invar/v1/admin.pb.h"
#include "invar/v1/config.pb.h"
#include "invar/v1/inference.pb.h"
#include "scheduler/core/request_table.h"
#include "scheduler/core/types.h"
#include "scheduler/core/worker_table.h"

namespace invar::scheduler {

class Core {
 public:
  struct Options {
    v1::Limits limits;  // defaults resolved
    v1::Determinism::Mode mode = v1::Determinism::DETERMINISTIC;
    std::string tokenizer_digest;  // workers with another are refused
    std::string config_digest;     // likewise
  };

  explicit Core(Options options) : options_(std::move(options)) {}

  // Takes one event and returns what is to be done, in order. `now` never
  // goes back.
  std::vector<Action> Step(const Event& event, absl::Time now);

  // --- What can be seen from outside ---------------------------------------

  // Every attached worker, and those refused lately, by worker id.
  std::vector<v1::WorkerInfo> Workers(absl::Time now) const;
  // The fingerprint that new requests run on; empty: none.
  std::string PrimaryFingerprint() const;
  // The pools, the one that new requests run on first.
  std::vector<v1::Pool> Pools() const;
  // Positions that a sequence may have; 0 without a worker.
  int32_t MaxContextTokens() const;
  int64_t queued() const { return requests_.queued(); }
  int64_t running() const { return requests_.running(); }

 private:
  void On(const RequestArrived& event);
  void On(const RequestAbandoned& event);
  void On(const AnswerStopped& event);
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

  // --- core_requests.cc ---

  // Whether workers have had the time to find this scheduler. Before, a pool
  // that is not there may be about to come.
  bool Settled() const;
  Finish NoSuchPool(const RequestSpec& spec) const;
  // Says why a request cannot be taken, or nothing.
  std::optional<Finish> WhyNot(const RequestSpec& spec) const;
  // Its max_tokens, or the default for one that names none.
  int32_t MaxOutput(const RequestSpec& spec) const;
  // Sends queued requests, first come first served, while credits last.
  void Dispatch();
  // Sends a queue's requests; false if one of them has to wait.
  bool DispatchQueue(const std::list<RequestNumber>& queue,
                     const std::string& pool);
  // Sends a request's waiting answers; false if one has to wait.
  bool TryDispatch(Request* request, const std::string& pool);
  // The worker to send it to; null: none has room. If none ever will, the
  // request has been finished.
  Worker* Choose(Request* request, const Sequence& sequence,
                 const std::string& pool);
  void Submit(Request* request, Sequence* sequence, Worker* worker);
  void OnAttempt(Worker* worker, const worker::v1::AttemptReport& report);
  bool DeliverNew(Request* request, Sequence* sequence,
                  worker::v1::AttemptReport report);
  void EndAttempt(Request* request, Sequence* sequence,
                  const worker::v1::Terminal& terminal);
  // Stops a running sequence at its worker.
  void Cancel(const Request& request, Sequence* sequence);
  // Finishes a request whose last answer has just ended.
  void FinishIfEnded(Request* request);
  // Puts a request whose worker gave it back at the head of its queue.
  void Requeue(Request* request);
  // A worker is gone with these: each request waits for another, or has had
  // enough. `died`: they may have been the reason.
  void OnLoss(const std::set<SequenceNumber>& running, bool died);
  // The requests that a worker may have been computing when it died.
  std::set<RequestNumber> Suspects(const std::set<SequenceNumber>& running);
  void FinishRequest(Request* request, Finish finish);
  Finish Failed(absl::StatusCode code, std::string reason,
                std::string message) const;
  void ExpireQueued();
  absl::Duration RetryAfter() const;

  // --- core_workers.cc ---

  // Why a loaded worker is refused; nothing: it is admitted.
  std::optional<Refusal> WhyRefused(const worker::v1::Loaded& loaded) const;
  // Tells the log, unless it is what the worker was told before.
  void Refuse(LinkNumber link, const worker::v1::Hello& hello,
              const Refusal& refusal);
  // Forgets a worker; its requests go back to the head of the queue.
  void Lose(LinkNumber link, const std::string& reason);
  // Why a worker counts as dead; empty: it lives.
  std::string WhyDead(const Worker& worker) const;
  // Closes the link of a dead worker and loses it.
  void Bury(LinkNumber link, const std::string& reason);
  void LoseSilent();
  void UpdateReadiness();

  void Emit(Action action) { actions_.push_back(std::move(action)); }
  void Info(std::string text);
  void Warn(std::string text);

  Options options_;
  absl::Time now_ = absl::InfinitePast();
  absl::Time started_ = absl::InfiniteFuture();  // the first step
  absl::Time last_tick_ = absl::InfiniteFuture();
  std::vector<Action> actions_;
  WorkerTable workers_;
  RequestTable requests_;
  absl::Duration mean_duration_ = absl::Seconds(1);  // of finished requests
  int64_t submissions_ = 0;
  bool ready_ = false;
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_CORE_CORE_H_
