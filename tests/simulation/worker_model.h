// A worker as its schedulers see it: sessions, epochs, credits split over the
// schedulers, and sequences that get tokens. No arithmetic.
#ifndef INVAR_TESTS_SIMULATION_WORKER_MODEL_H_
#define INVAR_TESTS_SIMULATION_WORKER_MODEL_H_

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <random>
#include <string>

#include "scheduler/core/types.h"
#include "worker/engine/credits.h"

namespace invar::simulation {

inline constexpr int kSchedulers = 3;
inline constexpr int64_t kSequences = 7;  // does not divide evenly
inline constexpr int64_t kBlocks = 24;

// The numerics of a pool.
v1::Numerics NumericsOf(int pool);

// One process. What it says goes into the session's `up`, which the world
// carries to the scheduler.
class WorkerModel {
 public:
  WorkerModel(std::string id, int pool) : id_(std::move(id)), pool_(pool) {}

  // The end of one stream at the worker.
  struct Session {
    std::optional<CreditLedger> ledger;  // once configured
    int64_t epoch = 0;
    struct Running {
      scheduler::SendSubmit submit;
      int64_t next = 0;  // position to write
      int64_t scored = 1;
      CreditAmount cost;
    };
    std::map<scheduler::SequenceNumber, Running> running;
    std::deque<scheduler::Event> up;
  };

  // The stream of scheduler `place` begins or ends; the end drops its lease.
  void Open(int place, scheduler::LinkNumber link);
  void Close(int place) { sessions_.erase(place); }

  // What a scheduler says.
  void On(int place, const scheduler::SendConfigure& configure);
  void On(int place, const scheduler::SendSubmit& submit);
  void On(int place, const scheduler::SendCancel& cancel);

  void Beat();
  void Leave();
  // One engine step over all sessions.
  void Step(std::mt19937& random);

  bool idle() const;
  bool leaving() const { return leaving_; }
  int pool() const { return pool_; }
  std::map<int, Session>& sessions() { return sessions_; }
  // The first broken rule, or nothing.
  const std::string& broken() const { return broken_; }

  // Plants: it claims other numerics, or a larger share than it has.
  int claimed_pool = -1;
  int64_t share_factor = 1;

 private:
  void Report(int place, const worker::v1::AttemptReport& attempt);
  void End(Session* session, scheduler::SequenceNumber number,
           worker::v1::Terminal::Reason reason,
           worker::v1::AttemptReport* attempt);
  void CheckCapacity();

  const std::string id_;
  const int pool_;
  bool leaving_ = false;
  std::map<int, scheduler::LinkNumber> links_;  // by place
  std::map<int, Session> sessions_;             // by place
  std::string broken_;
};

}  // namespace invar::simulation

#endif  // INVAR_TESTS_SIMULATION_WORKER_MODEL_H_
