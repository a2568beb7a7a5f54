// Runs the real core against simulated workers and clients for many seeds:
// messages are delayed and reordered between links, workers die, stall, leave
// and come back, clients leave. A failing seed reproduces itself.
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/config.h"
#include "common/numerics.h"
#include "common/version.h"
#include "scheduler/core/core.h"

namespace invar::scheduler {
namespace {

using worker::v1::Terminal;

constexpr int kPools = 2;
constexpr int64_t kSequences = 3;

// A mistake put into the simulated world; the checks must find it.
enum class Plant { kNone, kRepeatToken, kOtherPool };

// The token that pool `pool` writes at a position: any other is a wrong one.
int32_t TokenAt(int pool, RequestNumber request, int64_t position) {
  return static_cast<int32_t>((pool * 31 + request * 17 + position * 7) % 1000);
}

class Simulation {
 public:
  Simulation(uint32_t seed, Plant plant)
      : random_(seed), plant_(plant), core_(MakeOptions()) {}

  // Runs and returns the first broken invariant, or nothing.
  std::string Run() {
    for (int i = 0; i < 1500 && broken_.empty(); ++i) Turn(i < 1000);
    // Every request ends once the world is calm again.
    for (int i = 0; i < 4000 && broken_.empty() && !open_.empty(); ++i) {
      Calm();
    }
    if (broken_.empty() && !open_.empty()) {
      return absl::StrCat(open_.size(), " requests never ended, first ",
                          open_.begin()->first);
    }
    return broken_;
  }
  int64_t finished() const { return finished_; }
  int64_t resumed() const { return resumed_; }

 private:
  struct Running {
    SendSubmit submit;
    int64_t next = 0;  // position
  };
  struct SimWorker {
    LinkNumber link;
    std::string id;
    int pool;
    bool loaded = false;
    std::map<SequenceNumber, Running> running;
    worker::v1::Credits credits;
    std::deque<Event> up;  // not yet at the scheduler
  };
  struct Open {
    std::shared_ptr<const RequestSpec> spec;
    int64_t delivered = 0;
    int pool = -1;
  };

  static Core::Options MakeOptions() {
    Core::Options options;
    options.limits = ParseServerConfig(
                         "model { path: \"m\" } limits { max_attempts: 4 "
                         "max_queued_requests: 50 }",
                         "c")
                         ->limits();
    options.tokenizer_digest = "t";
    return options;
  }

  int Random(int below) {
    return std::uniform_int_distribution<int>(0, below - 1)(random_);
  }
  void Break(std::string what) {
    if (broken_.empty()) broken_ = std::move(what);
  }

  void Turn(bool arrivals) {
    now_ += absl::Milliseconds(Random(20));
    const int choice = Random(100);
    if (choice < 25 && arrivals) {
      Arrive();
    } else if (choice < 30 && !open_.empty()) {
      Step(RequestAbandoned{open_.begin()->first});
    } else if (choice < 34 && workers_.size() < 4) {
      Attach();
    } else if (choice < 37 && !workers_.empty()) {
      Kill(PickWorker());
    } else {
      Advance();
    }
    if (Random(4) == 0) Step(Tick{});
  }

  void Calm() {
    now_ += absl::Milliseconds(10);
    if (workers_.empty()) Attach();
    Advance();
    Step(Tick{});
  }

  void Arrive() {
    auto spec = std::make_shared<RequestSpec>();
    spec->number = ++last_request_;
    spec->request_id = absl::StrCat(spec->number);
    spec->prompt.assign(1 + Random(100), 1);
    spec->max_tokens = 1 + Random(60);
    open_[spec->number] = {spec};
    Step(RequestArrived{spec});
  }

  void Attach() {
    SimWorker worker;
    worker.link = ++last_link_;
    worker.id = absl::StrCat("w", last_link_);
    worker.pool = Random(kPools);
    const LinkNumber link = worker.link;
    worker::v1::Hello hello;
    hello.set_protocol_version(kLinkProtocolVersion);
    hello.set_worker_id(worker.id);
    workers_[link] = std::move(worker);
    Step(WorkerAttached{link, hello});
    worker::v1::Loaded loaded;
    auto* mode = loaded.mutable_numerics()->mutable_plan()->add_entries();
    mode->set_name("mode");
    mode->set_value("DETERMINISTIC");
    loaded.mutable_numerics()->set_tokenizer_digest("t");
    loaded.mutable_numerics()->set_weights_digest(
        absl::StrCat(workers_[link].pool));
    loaded.mutable_numerics()->set_fingerprint(Fingerprint(loaded.numerics()));
    loaded.mutable_capacity()->set_block_tokens(64);
    loaded.mutable_capacity()->set_sequences(kSequences);
    loaded.mutable_capacity()->set_kv_blocks(kSequences * 3);
    loaded.set_max_context_tokens(4096);
    auto* credits = &workers_[link].credits;
    credits->set_sequences(kSequences);
    credits->set_kv_tokens(kSequences * 192);
    *loaded.mutable_credits() = *credits;
    workers_[link].loaded = true;
    Step(WorkerLoaded{link, loaded});
  }

  LinkNumber PickWorker() {
    auto at = workers_.begin();
    std::advance(at, Random(static_cast<int>(workers_.size())));
    return at->first;
  }

  void Kill(LinkNumber link) {
    // What was on its way may still arrive, before the loss is seen.
    auto up = std::move(workers_[link].up);
    const size_t arrives = up.empty() ? 0 : Random(static_cast<int>(up.size()));
    for (size_t i = 0; i < arrives; ++i) Step(up[i]);
    workers_.erase(link);
    Step(WorkerLost{link, "killed"});
  }

  // One worker computes a step, or one of its reports arrives.
  void Advance() {
    if (workers_.empty()) return;
    SimWorker& worker = workers_[PickWorker()];
    worker.up.push_back(WorkerBeat{worker.link, {}});
    if (Random(2) == 0) Compute(&worker);
    const LinkNumber link = worker.link;
    for (int i = 0; i < 3 && workers_.contains(link); ++i) {
      if (workers_[link].up.empty()) break;
      const Event event = workers_[link].up.front();
      workers_[link].up.pop_front();
      Step(event);
    }
  }

  void Compute(SimWorker* worker) {
    worker::v1::StepReport report;
    std::vector<SequenceNumber> ended;
    for (auto& [number, running] : worker->running) {
      auto* attempt = report.add_attempts();
      *attempt->mutable_key() = running.submit.key;
      attempt->set_position(static_cast<int32_t>(running.next));
      const int count = 1 + Random(3);
      const int64_t end =
          static_cast<int64_t>(running.submit.request->prompt.size()) +
          running.submit.max_tokens;
      for (int i = 0; i < count && running.next < end; ++i) {
        attempt->add_token_ids(
            TokenAt(worker->pool, RequestOf(number), running.next++));
      }
      if (plant_ == Plant::kRepeatToken && Random(50) == 0) --running.next;
      if (running.next < end) continue;
      attempt->mutable_terminal()->set_reason(Terminal::LENGTH);
      ended.push_back(number);
    }
    for (const SequenceNumber number : ended) Return(worker, number);
    *report.mutable_credits() = worker->credits;
    worker->up.push_back(WorkerReported{worker->link, report});
  }

  static int64_t Cost(const SendSubmit& submit) {
    const int64_t tokens = static_cast<int64_t>(submit.request->prompt.size()) +
                           static_cast<int64_t>(submit.delivered.size());
    return (tokens + 63) / 64 * 64;
  }

  void Return(SimWorker* worker, SequenceNumber number) {
    const int64_t cost = Cost(worker->running.at(number).submit);
    worker->credits.set_sequences(worker->credits.sequences() + 1);
    worker->credits.set_kv_tokens(worker->credits.kv_tokens() + cost);
    worker->running.erase(number);
  }

  void Step(const Event& event) {
    for (const Action& action : core_.Step(event, now_)) {
      std::visit([this](const auto& one) { On(one); }, action);
    }
  }

  template <typename Other>
  void On(const Other&) {}

  void On(const SendSubmit& action) {
    const auto found = workers_.find(action.link);
    if (found == workers_.end()) return;
    SimWorker& worker = found->second;
    int64_t kv = Cost(action);
    for (const auto& [number, running] : worker.running) {
      kv += Cost(running.submit);
    }
    if (static_cast<int64_t>(worker.running.size()) >= kSequences ||
        kv > kSequences * 192) {
      Break(absl::StrCat("worker ", worker.id, " is overbooked"));
    }
    Running running{action};
    running.next = static_cast<int64_t>(action.request->prompt.size() +
                                        action.delivered.size());
    if (!action.delivered.empty()) ++resumed_;
    worker.running[action.key.request()] = running;
  }

  void On(const SendCancel& action) {
    const auto found = workers_.find(action.link);
    if (found == workers_.end()) return;
    SimWorker& worker = found->second;
    if (!worker.running.contains(action.key.request())) return;
    Return(&worker, action.key.request());
    worker::v1::StepReport report;
    auto* attempt = report.add_attempts();
    *attempt->mutable_key() = action.key;
    attempt->mutable_terminal()->set_reason(Terminal::CANCELLED);
    *report.mutable_credits() = worker.credits;
    worker.up.push_back(WorkerReported{worker.link, report});
  }

  void On(const CloseLink& action) { workers_.erase(action.link); }

  void On(const Deliver& action) {
    const auto found = open_.find(action.request);
    if (found == open_.end()) {
      return Break(absl::StrCat("delivery to ended ", action.request));
    }
    Open& open = found->second;
    for (const int32_t token : action.report.token_ids()) {
      const int64_t position =
          static_cast<int64_t>(open.spec->prompt.size()) + open.delivered++;
      if (open.pool < 0) {
        for (int pool = 0; pool < kPools; ++pool) {
          if (token == TokenAt(pool, action.request, position))
            open.pool = pool;
        }
        if (plant_ == Plant::kOtherPool) open.pool = 1 - open.pool;
      }
      if (token != TokenAt(open.pool, action.request, position)) {
        return Break(absl::StrCat("request ", action.request, " got ", token,
                                  " at position ", position));
      }
    }
  }

  void On(const Finish& action) {
    const auto found = open_.find(action.request);
    if (found == open_.end()) {
      return Break(absl::StrCat(action.request, " ended twice"));
    }
    const Open& open = found->second;
    if (absl::IsInternal(action.status)) {
      Break(absl::StrCat(action.request, ": ",
                         std::string(action.status.message())));
    }
    if (action.status.ok()) {
      ++finished_;
      if (open.delivered != *open.spec->max_tokens) {
        Break(absl::StrCat(action.request, " ended after ", open.delivered,
                           " of ", *open.spec->max_tokens));
      }
    }
    open_.erase(found);
  }

  std::mt19937 random_;
  const Plant plant_;
  Core core_;
  absl::Time now_ = absl::UnixEpoch();
  RequestNumber last_request_ = 0;
  LinkNumber last_link_ = 0;
  std::map<LinkNumber, SimWorker> workers_;
  std::map<RequestNumber, Open> open_;
  std::string broken_;
  int64_t finished_ = 0;
  int64_t resumed_ = 0;
};

TEST(SimulationTest, InvariantsHoldForEverySeed) {
  int64_t finished = 0;
  int64_t resumed = 0;
  for (uint32_t seed = 0; seed < 1000; ++seed) {
    Simulation simulation(seed, Plant::kNone);
    ASSERT_EQ(simulation.Run(), "") << "seed " << seed;
    finished += simulation.finished();
    resumed += simulation.resumed();
  }
  // The simulation exercises what it is for.
  EXPECT_GT(finished, 20'000);
  EXPECT_GT(resumed, 100);
}

TEST(SimulationTest, PlantedMistakesAreFound) {
  for (const Plant plant : {Plant::kRepeatToken, Plant::kOtherPool}) {
    int found = 0;
    for (uint32_t seed = 0; seed < 5; ++seed) {
      found += Simulation(seed, plant).Run().empty() ? 0 : 1;
    }
    EXPECT_EQ(found, 5) << static_cast<int>(plant);
  }
}

}  // namespace
}  // namespace invar::scheduler
