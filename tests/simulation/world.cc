#include "tests/simulation/world.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/config.h"
#include "tests/simulation/truth.h"

namespace invar::simulation {
namespace {

using scheduler::Core;

constexpr int kTurns = 700;
constexpr int kCalmTurns = 4000;

Core::Options MakeOptions() {
  Core::Options options;
  options.limits = ParseServerConfig(
                       "model { path: \"m\" } limits { max_attempts: 16 "
                       "max_queued_requests: 50 }",
                       "c")
                       ->limits();
  options.tokenizer_digest = "tokenizer";
  options.config_digest = "config";
  return options;
}

}  // namespace

World::World(uint32_t seed, Plant plant) : random_(seed), plant_(plant) {
  for (int place = 0; place < kSchedulers; ++place) StartScheduler(place);
}

void World::Break(std::string what) {
  if (broken_.empty()) broken_ = std::move(what);
}

std::string World::Run() {
  for (int i = 0; i < kTurns && broken_.empty(); ++i) Turn();
  // Every request ends once the world is calm again.
  for (int i = 0; i < kCalmTurns && broken_.empty() && !clients_.empty(); ++i) {
    Calm();
  }
  if (broken_.empty() && !clients_.empty()) {
    return absl::StrCat(clients_.size(), " requests never ended, first ",
                        clients_.begin()->first);
  }
  return broken_;
}

// --- What happens -----------------------------------------------------------

void World::Turn() {
  PassTime(Random(40));
  const int slot = Random(kWorkers);
  const int place = Random(kSchedulers);
  const int choice = Random(200);
  if (choice < 25) {
    Arrive();
  } else if (choice < 27) {
    KillScheduler(place);
  } else if (choice < 33) {
    StartScheduler(place);
  } else if (choice < 36) {
    KillWorker(slot);
  } else if (choice < 48) {
    StartWorker(slot);
  } else if (choice < 50 && workers_[slot].model != nullptr) {
    workers_[slot].model->Leave();
  } else if (choice < 54) {
    workers_[slot].stopped = choice < 51;
  } else if (choice < 56) {
    // The network breaks: the worker may dial before the scheduler knows.
    EndAtWorker(slot, place);
  } else if (choice < 58 && !clients_.empty()) {
    ClientModel& client = clients_.begin()->second;
    if (client.state() == ClientModel::State::kStreaming) {
      Step(client.place, scheduler::RequestAbandoned{client.number});
      client.Lose();
      clients_.erase(clients_.begin());
    }
  }
  for (int i = 0; i < 4; ++i) {
    MoveStream(Random(kWorkers), Random(kSchedulers));
  }
  MoveWorker(Random(kWorkers));
  for (auto& [number, client] : clients_) {
    if (Random(3) == 0) MoveClient(&client);
  }
  std::erase_if(clients_, [this](const auto& entry) {
    const auto state = entry.second.state();
    Break(entry.second.broken());
    tally_.complete += state == ClientModel::State::kComplete ? 1 : 0;
    tally_.refused += state == ClientModel::State::kRefused ? 1 : 0;
    return state == ClientModel::State::kComplete ||
           state == ClientModel::State::kRefused;
  });
  for (const Worker& worker : workers_) {
    if (worker.model != nullptr) Break(worker.model->broken());
  }
}

void World::Calm() {
  PassTime(20);
  for (int place = 0; place < kSchedulers; ++place) StartScheduler(place);
  for (int slot = 0; slot < kWorkers; ++slot) {
    workers_[slot].stopped = false;
    StartWorker(slot);
    MoveWorker(slot);
    for (int place = 0; place < kSchedulers; ++place) MoveStream(slot, place);
  }
  for (auto& [number, client] : clients_) MoveClient(&client);
  std::erase_if(clients_, [this](const auto& entry) {
    const auto state = entry.second.state();
    Break(entry.second.broken());
    tally_.complete += state == ClientModel::State::kComplete ? 1 : 0;
    return state == ClientModel::State::kComplete ||
           state == ClientModel::State::kRefused;
  });
}

void World::PassTime(int milliseconds) {
  now_ += absl::Milliseconds(milliseconds);
  for (int place = 0; place < kSchedulers; ++place) {
    Scheduler& one = schedulers_[place];
    if (one.core == nullptr) continue;
    while (!one.inbox.empty()) {
      const scheduler::Event event = std::move(one.inbox.front());
      one.inbox.pop_front();
      Step(place, event);
    }
    if (now_ < one.next_tick) continue;
    one.next_tick = now_ + absl::Milliseconds(50);
    Step(place, scheduler::Tick{});
  }
  for (Worker& worker : workers_) {
    if (worker.model == nullptr || worker.stopped || now_ < worker.next_beat) {
      continue;
    }
    worker.next_beat = now_ + absl::Milliseconds(500);
    worker.model->Beat();
  }
}

void World::StartScheduler(int place) {
  Scheduler& one = schedulers_[place];
  if (one.core != nullptr) return;
  one = Scheduler();
  one.core = std::make_unique<Core>(MakeOptions());
  one.next_tick = now_;
}

void World::KillScheduler(int place) {
  Scheduler& one = schedulers_[place];
  if (one.core == nullptr) return;
  ++tally_.scheduler_deaths;
  one.core.reset();
  for (int slot = 0; slot < kWorkers; ++slot) EndAtWorker(slot, place);
  for (auto& [number, client] : clients_) {
    if (client.place != place) continue;
    // A part of what was on its way still comes.
    while (!client.on_the_way.empty() && Random(2) == 0) {
      const ClientModel::News news = std::move(client.on_the_way.front());
      client.on_the_way.pop_front();
      if (client.state() == ClientModel::State::kStreaming) client.Take(news);
    }
    client.Lose();
  }
}

void World::StartWorker(int slot) {
  Worker& worker = workers_[slot];
  if (worker.model != nullptr) return;
  // Each slot mostly has its pool; an upgrade changes it for a while.
  const int pool = Random(5) == 0 ? Random(kPools) : slot % kPools;
  worker.model = std::make_unique<WorkerModel>(absl::StrCat("w", slot), pool);
  worker.stopped = false;
  worker.next_beat = now_;
  if (plant_ == Plant::kMixesPools) worker.model->claimed_pool = 0;
  if (plant_ == Plant::kOverbooks) worker.model->share_factor = kSchedulers;
}

void World::KillWorker(int slot) {
  Worker& worker = workers_[slot];
  if (worker.model == nullptr) return;
  ++tally_.worker_deaths;
  for (int place = 0; place < kSchedulers; ++place) {
    EndAtScheduler(slot, place, Random(4));
  }
  worker = Worker();
}

void World::EndAtScheduler(int slot, int place, int arrives) {
  Worker& worker = workers_[slot];
  const scheduler::LinkNumber link = worker.streams[place].link;
  if (link == 0) return;
  auto& up = worker.model->sessions().at(place).up;
  for (; arrives > 0 && !up.empty(); --arrives) {
    Step(place, up.front());
    up.pop_front();
  }
  EndAtWorker(slot, place);
}

void World::EndAtWorker(int slot, int place) {
  Worker& worker = workers_[slot];
  Stream& stream = worker.streams[place];
  if (stream.link == 0) return;
  // Often the scheduler sees it only later, once the worker is back.
  Scheduler& one = schedulers_[place];
  if (one.core != nullptr && one.links.contains(stream.link)) {
    one.inbox.push_back(scheduler::WorkerLost{stream.link, "broken"});
  }
  stream = Stream();
  worker.model->Close(place);
}

void World::Arrive() {
  scheduler::RequestSpec spec;
  spec.seed = ++last_client_;
  spec.request_id = absl::StrCat("client ", last_client_);
  spec.prompt.assign(1 + Random(100), 1);
  spec.max_tokens = 1 + Random(40);
  spec.answers = Random(4) == 0 ? 2 : 1;
  spec.prompt_logprobs = Random(4) == 0;
  ClientModel client(spec);
  client.forgets_fingerprint = plant_ == Plant::kResumesElsewhere;
  clients_.emplace(last_client_, std::move(client));
}

void World::MoveStream(int slot, int place) {
  Worker& worker = workers_[slot];
  Scheduler& one = schedulers_[place];
  if (worker.model == nullptr || worker.stopped || one.core == nullptr) return;
  Stream& stream = worker.streams[place];
  if (stream.link == 0) {
    if (worker.model->leaving()) return;
    stream.link = ++last_link_;
    one.links[stream.link] = slot;
    worker.model->Open(place, stream.link);
  }
  for (int i = 0; i < 6 && !stream.down.empty(); ++i) {
    const scheduler::Action action = std::move(stream.down.front());
    stream.down.pop_front();
    if (const auto* configure =
            std::get_if<scheduler::SendConfigure>(&action)) {
      worker.model->On(place, *configure);
    } else if (const auto* submit =
                   std::get_if<scheduler::SendSubmit>(&action)) {
      worker.model->On(place, *submit);
    } else if (const auto* cancel =
                   std::get_if<scheduler::SendCancel>(&action)) {
      worker.model->On(place, *cancel);
    } else {
      return EndAtWorker(slot, place);  // It hung up.
    }
  }
  auto& up = worker.model->sessions().at(place).up;
  for (int i = 0; i < 12 && stream.link != 0 && !up.empty(); ++i) {
    const scheduler::Event event = std::move(up.front());
    up.pop_front();
    Step(place, event);
  }
}

void World::MoveWorker(int slot) {
  Worker& worker = workers_[slot];
  if (worker.model == nullptr || worker.stopped) return;
  worker.model->Step(random_);
  if (worker.model->leaving() && worker.model->idle()) {
    // It says all that it has to say, and goes.
    for (int place = 0; place < kSchedulers; ++place) {
      EndAtScheduler(slot, place, 1000);
    }
    worker = Worker();
  }
}

void World::MoveClient(ClientModel* client) {
  while (!client->on_the_way.empty() && Random(4) != 0) {
    const ClientModel::News news = std::move(client->on_the_way.front());
    client->on_the_way.pop_front();
    client->Take(news);
  }
  if (client->state() != ClientModel::State::kWaiting) return;
  client->place = Random(kSchedulers);
  Scheduler& one = schedulers_[client->place];
  if (one.core == nullptr) return;
  const auto spec = client->NextRequest(++one.last_request);
  if (client->resumes()) {
    ++tally_.resumed;
    tally_.elsewhere += client->place != client->last_place ? 1 : 0;
  }
  Answering& answering = one.requests[spec->number];
  answering.client = static_cast<int64_t>(spec->seed);
  answering.written.assign(spec->answers, spec->resume_tokens.size());
  answering.stopped.assign(spec->answers, false);
  Step(client->place, scheduler::RequestArrived{spec});
}

// --- A scheduler's shell ----------------------------------------------------

void World::Step(int place, scheduler::Event event) {
  Scheduler& one = schedulers_[place];
  if (const auto* lost = std::get_if<scheduler::WorkerLost>(&event)) {
    one.links.erase(lost->link);
  }
  for (scheduler::Action& action : one.core->Step(event, now_)) {
    Handle(place, std::move(action));
  }
}

void World::Handle(int place, scheduler::Action action) {
  if (auto* submit = std::get_if<scheduler::SendSubmit>(&action)) {
    if (submit->key.attempt() > 1 && !submit->delivered.empty()) {
      ++tally_.resubmitted;
      if (plant_ == Plant::kForgetsToken) submit->delivered.pop_back();
    }
    ToWorker(place, submit->link, std::move(action));
  } else if (auto* configure = std::get_if<scheduler::SendConfigure>(&action)) {
    ToWorker(place, configure->link, std::move(action));
  } else if (auto* cancel = std::get_if<scheduler::SendCancel>(&action)) {
    ToWorker(place, cancel->link, std::move(action));
  } else if (auto* close = std::get_if<scheduler::CloseLink>(&action)) {
    ToWorker(place, close->link, std::move(action));
  } else if (auto* refused = std::get_if<scheduler::SendRefused>(&action)) {
    Break(absl::StrCat("a worker is refused: ", refused->refusal.text));
  } else if (auto* begin = std::get_if<scheduler::Begin>(&action)) {
    On(place, *begin);
  } else if (auto* deliver = std::get_if<scheduler::Deliver>(&action)) {
    On(place, std::move(*deliver));
  } else if (auto* finish = std::get_if<scheduler::Finish>(&action)) {
    if (plant_ == Plant::kLosesRequest && Random(50) == 0) return;
    On(place, *finish);
    if (plant_ == Plant::kFinishesTwice) On(place, *finish);
  }
}

void World::ToWorker(int place, scheduler::LinkNumber link,
                     scheduler::Action action) {
  const auto found = schedulers_[place].links.find(link);
  if (found == schedulers_[place].links.end()) return;
  Stream& stream = workers_[found->second].streams[place];
  // Else the worker has hung up, and the scheduler does not know it yet.
  if (stream.link == link) stream.down.push_back(std::move(action));
}

ClientModel* World::ClientOf(int place, scheduler::RequestNumber request) {
  const auto found = schedulers_[place].requests.find(request);
  if (found == schedulers_[place].requests.end()) {
    Break(absl::StrCat("request ", request, " has ended, and goes on"));
    return nullptr;
  }
  const auto client = clients_.find(found->second.client);
  if (client == clients_.end() || client->second.place != place ||
      client->second.number != request) {
    return nullptr;
  }
  return &client->second;
}

void World::On(int place, const scheduler::Begin& begin) {
  if (ClientModel* client = ClientOf(place, begin.request)) {
    client->on_the_way.push_back(begin);
  }
}

void World::On(int place, scheduler::Deliver deliver) {
  ClientModel* client = ClientOf(place, deliver.request);
  if (client == nullptr) return;
  // As Answer does: nothing passes a stop string.
  Answering& answering = schedulers_[place].requests.at(deliver.request);
  int64_t& written = answering.written[deliver.index];
  auto* tokens = deliver.report.mutable_token_ids();
  const int64_t stop = client->StopAfter(deliver.index);
  if (stop > 0 && tokens->size() > 0 && written + tokens->size() >= stop) {
    tokens->Truncate(static_cast<int>(std::max<int64_t>(0, stop - written)));
    if (!answering.stopped[deliver.index]) {
      schedulers_[place].inbox.push_back(
          scheduler::AnswerStopped{deliver.request, deliver.index});
    }
    answering.stopped[deliver.index] = true;
  }
  written += tokens->size();
  client->on_the_way.push_back(std::move(deliver));
}

void World::On(int place, const scheduler::Finish& finish) {
  ClientModel* client = ClientOf(place, finish.request);
  schedulers_[place].requests.erase(finish.request);
  if (client == nullptr) return;
  if (absl::IsFailedPrecondition(finish.status)) {
    for (const v1::Pool& pool : schedulers_[place].core->Pools()) {
      if (client->resumes() &&
          pool.numerics().fingerprint() == client->fingerprint()) {
        Break(absl::StrCat(client->spec().request_id,
                           " is refused by a pool that is there"));
      }
    }
  }
  client->on_the_way.push_back(finish);
}

}  // namespace invar::simulation
