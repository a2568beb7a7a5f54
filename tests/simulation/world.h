// Three schedulers, four workers and their clients in one thread: the real
// core, everything around it a model. A seed fixes every start, stop, delay and
// loss, so that a failing one shows the same failure again.
#ifndef INVAR_TESTS_SIMULATION_WORLD_H_
#define INVAR_TESTS_SIMULATION_WORLD_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "scheduler/core/core.h"
#include "tests/simulation/client_model.h"
#include "tests/simulation/worker_model.h"

namespace invar::simulation {

// A mistake put into the world around the core, as a wrong core would make it;
// the checks must find it.
enum class Plant {
  kNone,
  kForgetsToken,      // a lost attempt goes on with one token less
  kMixesPools,        // workers of other weights claim one fingerprint
  kFinishesTwice,     // a request's end is told again
  kLosesRequest,      // a request's end is not told
  kOverbooks,         // a worker grants each scheduler its whole self
  kResumesElsewhere,  // a client resumes without naming the fingerprint
};

// What happened, to show that the simulation meets what it is for.
struct Tally {
  int64_t complete = 0;
  int64_t refused = 0;      // with a reason that ends them
  int64_t resubmitted = 0;  // attempts that go on with delivered tokens
  int64_t resumed = 0;      // by clients, with tokens
  int64_t elsewhere = 0;    // of these, at another scheduler
  int64_t worker_deaths = 0;
  int64_t scheduler_deaths = 0;
};

class World {
 public:
  World(uint32_t seed, Plant plant);

  // Runs to the end; returns the first broken invariant, or nothing.
  std::string Run();
  const Tally& tally() const { return tally_; }

 private:
  static constexpr int kWorkers = 4;

  // What a scheduler's shell knows of a request: see api/answer.h.
  struct Answering {
    int64_t client = 0;
    std::vector<int64_t> written;  // output tokens, by index
    std::vector<bool> stopped;
  };
  // One life of a scheduler.
  struct Scheduler {
    std::unique_ptr<scheduler::Core> core;  // null: it is down
    // The worker of each link whose end it has not seen.
    std::map<scheduler::LinkNumber, int> links;
    std::map<scheduler::RequestNumber, Answering> requests;
    std::deque<scheduler::Event> inbox;  // of its own making
    scheduler::RequestNumber last_request = 0;
    absl::Time next_tick;
  };
  // The stream of one worker to one scheduler.
  struct Stream {
    scheduler::LinkNumber link = 0;  // 0: the worker holds none
    std::deque<scheduler::Action> down;
  };
  struct Worker {
    std::unique_ptr<WorkerModel> model;  // null: it is down
    bool stopped = false;                // SIGSTOP
    absl::Time next_beat;
    Stream streams[kSchedulers];
  };

  int Random(int below) { return static_cast<int>(random_() % below); }
  void Break(std::string what);

  // --- What happens ---
  void Turn();
  void Calm();
  void PassTime(int milliseconds);
  void StartScheduler(int place);
  void KillScheduler(int place);
  void StartWorker(int slot);
  // Its streams end at the schedulers, after a part of what was on its way.
  void KillWorker(int slot);
  // The worker sees the end of a stream and drops its lease.
  void EndAtWorker(int slot, int place);
  // The scheduler sees it, after up to `arrives` more messages.
  void EndAtScheduler(int slot, int place, int arrives);
  void Arrive();
  // Messages on a stream move, or it is dialled; the worker computes.
  void MoveStream(int slot, int place);
  void MoveWorker(int slot);
  // The client reads, or sends its request.
  void MoveClient(ClientModel* client);

  // --- A scheduler's shell ---
  void Step(int place, scheduler::Event event);
  void Handle(int place, scheduler::Action action);
  void ToWorker(int place, scheduler::LinkNumber link,
                scheduler::Action action);
  void On(int place, const scheduler::Begin& begin);
  void On(int place, scheduler::Deliver deliver);
  void On(int place, const scheduler::Finish& finish);
  // Null: it is gone, or streams from elsewhere by now.
  ClientModel* ClientOf(int place, scheduler::RequestNumber request);

  std::mt19937 random_;
  const Plant plant_;
  absl::Time now_ = absl::UnixEpoch();
  scheduler::LinkNumber last_link_ = 0;
  Scheduler schedulers_[kSchedulers];
  Worker workers_[kWorkers];
  std::map<int64_t, ClientModel> clients_;  // whose answers are not complete
  int64_t last_client_ = 0;
  std::string broken_;
  Tally tally_;
};

}  // namespace invar::simulation

#endif  // INVAR_TESTS_SIMULATION_WORLD_H_
