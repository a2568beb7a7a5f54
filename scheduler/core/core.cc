#include "scheduler/core/core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/numerics.h"
#include "common/version.h"

namespace invar::scheduler {
namespace {

using worker::v1::AttemptReport;
using worker::v1::Terminal;

std::string Short(const std::string& digest) { return digest.substr(0, 12); }

}  // namespace

std::vector<Action> Core::Step(const Event& event, absl::Time now) {
  now_ = now;
  std::visit([this](const auto& one) { On(one); }, event);
  Dispatch();
  UpdateReadiness();
  return std::exchange(actions_, {});
}

// --- Requests ---------------------------------------------------------------

std::optional<Finish> Core::WhyNot(const RequestSpec& spec) const {
  const Worker* primary = Primary();
  if (primary == nullptr) {
    Finish finish = Failed(absl::StatusCode::kUnavailable, "NO_WORKER",
                           "no worker is ready; start one with invar-worker, "
                           "or see `invar workers`");
    finish.retry_after = absl::Seconds(1);
    return finish;
  }
  if (ids_in_flight_.contains(spec.request_id)) {
    return Failed(absl::StatusCode::kAlreadyExists, "REQUEST_IN_FLIGHT",
                  absl::StrCat("a request with request_id \"", spec.request_id,
                               "\" is in flight; wait for it or choose "
                               "another id"));
  }
  if (!spec.expected_fingerprint.empty() &&
      std::none_of(workers_.begin(), workers_.end(), [&](const auto& entry) {
        return entry.second.admitted() &&
               entry.second.numerics.fingerprint() == spec.expected_fingerprint;
      })) {
    return Failed(
        absl::StatusCode::kFailedPrecondition, "NO_SUCH_FINGERPRINT",
        absl::StrCat("resume.expected_fingerprint ", spec.expected_fingerprint,
                     " is served by no worker; here it is ",
                     primary->numerics.fingerprint()));
  }
  const int64_t context = MaxContextTokens();
  const int64_t prompt = static_cast<int64_t>(spec.prompt.size());
  const int64_t output = spec.max_tokens.value_or(1);
  if (prompt + output > context) {
    return Failed(
        absl::StatusCode::kOutOfRange, "TOO_LONG",
        absl::StrCat("the prompt has ", prompt, " tokens and max_tokens is ",
                     output, "; together they may be at most ", context));
  }
  if (queued() >= options_.limits.max_queued_requests()) {
    Finish finish = Failed(
        absl::StatusCode::kResourceExhausted, "QUEUE_FULL",
        absl::StrCat("the queue is full (limits.max_queued_requests = ",
                     options_.limits.max_queued_requests(), "); try again"));
    finish.retry_after = RetryAfter();
    return finish;
  }
  return std::nullopt;
}

void Core::On(const RequestArrived& event) {
  const RequestSpec& spec = *event.request;
  if (std::optional<Finish> refusal = WhyNot(spec)) {
    refusal->request = spec.number;
    Emit(*std::move(refusal));
    return;
  }
  Request request;
  request.spec = event.request;
  request.arrived = now_;
  request.fingerprint = spec.expected_fingerprint;
  request.delivered = spec.resume_tokens;
  const int64_t room =
      MaxContextTokens() - static_cast<int64_t>(spec.prompt.size());
  request.max_tokens = spec.max_tokens.value_or(static_cast<int32_t>(
      std::min<int64_t>(room, options_.limits.default_max_tokens())));
  ids_in_flight_.insert(spec.request_id);
  Request& stored =
      requests_.emplace(spec.number, std::move(request)).first->second;
  Enqueue(&stored, End::kTail);
}

void Core::On(const RequestAbandoned& event) {
  const auto found = requests_.find(event.request);
  if (found == requests_.end()) return;
  const Request& request = found->second;
  if (Worker* worker = FindWorker(request.link)) {
    worker::v1::AttemptKey key;
    key.set_epoch(worker->epoch);
    key.set_request(event.request);
    key.set_attempt(request.attempt);
    Emit(SendCancel{worker->link, key});
  }
  FinishRequest(&found->second,
                Failed(absl::StatusCode::kCancelled, "ABANDONED",
                       "nobody waits for the answer any more"));
}

void Core::Dispatch() {
  // First come, first served: a request that finds no room blocks those behind
  // it, so that none starves. Begun requests, which have a pool, go first.
  for (auto queue = queues_.rbegin(); queue != queues_.rend(); ++queue) {
    const std::string pool =
        queue->first.empty() ? PrimaryFingerprint() : queue->first;
    while (!queue->second.empty() &&
           TryDispatch(&requests_.at(queue->second.front()), pool)) {
    }
  }
}

bool Core::TryDispatch(Request* request, const std::string& pool) {
  bool any = false;
  bool could_ever_fit = false;
  Worker* best = nullptr;
  for (auto& [link, worker] : workers_) {
    if (worker.state != v1::WorkerInfo::READY) continue;
    if (worker.numerics.fingerprint() != pool) continue;
    any = true;
    const int64_t cost = KvCost(*request, worker);
    could_ever_fit |= cost <= worker.first_kv_tokens;
    if (worker.free_sequences() < 1 || worker.free_kv_tokens() < cost) continue;
    if (best == nullptr || worker.running.size() < best->running.size()) {
      best = &worker;
    }
  }
  if (best != nullptr) {
    Submit(request, best);
    return true;
  }
  if (!any || could_ever_fit) return false;
  const int64_t tokens =
      static_cast<int64_t>(request->spec->prompt.size()) + request->max_tokens;
  FinishRequest(request,
                Failed(absl::StatusCode::kOutOfRange, "KV_CACHE_TOO_SMALL",
                       absl::StrCat("prompt and max_tokens need ", tokens,
                                    " tokens of KV cache, more than any worker "
                                    "has; lower max_tokens or raise "
                                    "kv_cache.memory_bytes")));
  return true;
}

void Core::Enqueue(Request* request, End end) {
  auto& queue = queues_[request->fingerprint];
  request->link = 0;
  request->place = queue.insert(end == End::kHead ? queue.begin() : queue.end(),
                                request->spec->number);
  ++queued_;
}

void Core::Dequeue(Request* request) {
  queues_[request->fingerprint].erase(request->place);
  --queued_;
}

void Core::Submit(Request* request, Worker* worker) {
  const RequestSpec& spec = *request->spec;
  Dequeue(request);
  request->link = worker->link;
  ++request->attempt;
  worker->running.insert(spec.number);
  worker->spent_sequences += 1;
  worker->spent_kv_tokens += KvCost(*request, *worker);
  if (request->attempt == 1) {
    Emit(Begin{spec.number, worker->numerics.fingerprint(),
               request->max_tokens});
  }
  SendSubmit submit;
  submit.link = worker->link;
  submit.key.set_epoch(worker->epoch);
  submit.key.set_request(spec.number);
  submit.key.set_attempt(request->attempt);
  submit.request = request->spec;
  submit.delivered = request->delivered;
  submit.max_tokens = request->max_tokens;
  submit.prompt_logprobs =
      spec.prompt_logprobs && request->prompt_logprobs_delivered + 1 <
                                  static_cast<int64_t>(spec.prompt.size());
  if (spec.deadline != absl::InfiniteFuture()) {
    submit.time_left = spec.deadline - now_;
  }
  Emit(std::move(submit));
}

// --- Workers ----------------------------------------------------------------

void Core::On(const WorkerAttached& event) {
  const std::string& id = event.hello.worker_id();
  if (event.hello.protocol_version() != kLinkProtocolVersion) {
    Emit(SendRefused{
        event.link,
        absl::StrCat("the worker speaks link protocol ",
                     event.hello.protocol_version(), ", this scheduler ",
                     kLinkProtocolVersion, "; run the same version of both")});
    return;
  }
  if (Worker* old = FindWorker(id)) {
    const LinkNumber link = old->link;
    Emit(CloseLink{link, absl::AbortedError(absl::StrCat(
                             "worker ", id,
                             " attached again; if these are "
                             "two workers, give each its own --worker-id"))});
    Lose(link, "it attached again");
  }
  Worker& worker = workers_[event.link];
  worker.link = event.link;
  worker.hello = event.hello;
  worker.epoch = ++epochs_[id];
  worker.last_beat = now_;
  Info(absl::StrCat("worker ", id, " (", event.hello.device(),
                    ") attached, epoch ", worker.epoch));
  Emit(SendConfigure{event.link, worker.epoch});
}

void Core::On(const WorkerLoaded& event) {
  Worker* worker = FindWorker(event.link);
  if (worker == nullptr) return;
  const auto& loaded = event.loaded;
  worker->last_beat = now_;
  worker->numerics = loaded.numerics();
  worker->capacity = loaded.capacity();
  worker->max_context_tokens = loaded.max_context_tokens();
  worker->granted_sequences = loaded.credits().sequences();
  worker->granted_kv_tokens = loaded.credits().kv_tokens();
  worker->first_kv_tokens = loaded.credits().kv_tokens();
  std::string refusal;
  if (loaded.numerics().tokenizer_digest() != options_.tokenizer_digest) {
    refusal =
        "its tokenizer differs from the scheduler's; both must read the "
        "same checkpoint";
  } else if (loaded.numerics().fingerprint() !=
             Fingerprint(loaded.numerics())) {
    refusal = "its fingerprint is not the hash of its numerics";
  } else if (loaded.capacity().block_tokens() < 1 ||
             loaded.max_context_tokens() < 1) {
    refusal = "it reports no capacity";
  }
  const std::string& id = worker->hello.worker_id();
  if (!refusal.empty()) {
    Warn(absl::StrCat("worker ", id, " refused: ", refusal));
    Emit(SendRefused{event.link, refusal});
    worker->state = v1::WorkerInfo::REFUSED;
    return;
  }
  const v1::Numerics* primary = PrimaryNumerics();
  worker->state = v1::WorkerInfo::READY;
  const std::string& fingerprint = worker->numerics.fingerprint();
  Emit(SendAdmitted{event.link, fingerprint});
  Info(absl::StrCat("worker ", id, " admitted to pool ", Short(fingerprint)));
  if (primary != nullptr && primary->fingerprint() != fingerprint) {
    Warn(absl::StrCat("worker ", id, " differs from pool ",
                      Short(primary->fingerprint()), " in ",
                      FirstDifference(*primary, worker->numerics),
                      "; it forms a pool of its own"));
  }
}

void Core::On(const WorkerLoadFailed& event) {
  Worker* worker = FindWorker(event.link);
  if (worker == nullptr) return;
  Warn(absl::StrCat("worker ", worker->hello.worker_id(),
                    " could not load: ", event.failure.message()));
  Lose(event.link, "it could not load");
}

void Core::On(const WorkerBeat& event) {
  Worker* worker = FindWorker(event.link);
  if (worker == nullptr) return;
  worker->last_beat = now_;
  worker->heartbeat = event.heartbeat;
}

void Core::On(const WorkerReported& event) {
  Worker* worker = FindWorker(event.link);
  if (worker == nullptr || !worker->admitted()) return;
  for (const AttemptReport& report : event.report.attempts()) {
    OnAttempt(worker, report);
  }
  if (event.report.has_credits()) {
    // Grants only grow: an older report cannot take one back.
    worker->granted_sequences =
        std::max(worker->granted_sequences, event.report.credits().sequences());
    worker->granted_kv_tokens =
        std::max(worker->granted_kv_tokens, event.report.credits().kv_tokens());
  }
}

void Core::OnAttempt(Worker* worker, const AttemptReport& report) {
  const auto found = requests_.find(report.key().request());
  if (found == requests_.end()) return;
  Request& request = found->second;
  if (report.key().epoch() != worker->epoch || request.link != worker->link ||
      report.key().attempt() != request.attempt) {
    return;  // Stale.
  }
  if (!DeliverNew(&request, report)) {
    worker->running.erase(report.key().request());
    FinishRequest(&request,
                  Failed(absl::StatusCode::kInternal, "WORKER_BUG",
                         absl::StrCat("worker ", worker->hello.worker_id(),
                                      " reported position ", report.position(),
                                      " out of order")));
    return;
  }
  if (!report.has_terminal()) return;
  worker->running.erase(report.key().request());
  EndAttempt(&request, report.terminal());
}

bool Core::DeliverNew(Request* request, AttemptReport report) {
  const int64_t prompt = static_cast<int64_t>(request->spec->prompt.size());
  if (report.prompt_logprobs_size() > 0) {
    // A later attempt scores the prompt again: pass on only what is new.
    const int32_t next = request->prompt_logprobs_delivered + 1;
    const int32_t end =
        report.prompt_position() + report.prompt_logprobs_size();
    if (report.prompt_position() > next || end > prompt) return false;
    const int32_t old = std::min(next, end) - report.prompt_position();
    report.mutable_prompt_logprobs()->ExtractSubrange(0, old, nullptr);
    report.set_prompt_position(report.prompt_position() + old);
    request->prompt_logprobs_delivered = std::max(next, end) - 1;
  }
  if (report.token_ids_size() > 0) {
    const int64_t next =
        prompt + static_cast<int64_t>(request->delivered.size());
    if (report.position() != next) return false;
    if (next + report.token_ids_size() > prompt + request->max_tokens) {
      return false;
    }
    request->fingerprint = workers_.at(request->link).numerics.fingerprint();
    request->delivered.insert(request->delivered.end(),
                              report.token_ids().begin(),
                              report.token_ids().end());
  }
  if (report.token_ids_size() > 0 || report.prompt_logprobs_size() > 0) {
    report.clear_terminal();
    Emit(Deliver{request->spec->number, std::move(report)});
  }
  return true;
}

void Core::EndAttempt(Request* request, const Terminal& terminal) {
  Finish finish;
  finish.request = request->spec->number;
  finish.reason = terminal.reason();
  switch (terminal.reason()) {
    case Terminal::STOP:
    case Terminal::LENGTH:
      mean_duration_ += (now_ - request->arrived - mean_duration_) / 8;
      break;
    case Terminal::REJECTED:
      Enqueue(request, End::kHead);
      return;
    case Terminal::DEADLINE:
      finish = Failed(absl::StatusCode::kDeadlineExceeded, "DEADLINE",
                      "the deadline passed before the answer was complete");
      break;
    case Terminal::NOT_FINITE:
      finish = Failed(absl::StatusCode::kDataLoss, "NOT_FINITE",
                      absl::StrCat("the model produced a value that is not "
                                   "finite: ",
                                   terminal.message(),
                                   "; check the checkpoint and its scales"));
      break;
    default:
      finish = Failed(absl::StatusCode::kInternal, "WORKER_BUG",
                      absl::StrCat("the worker ended the request: ",
                                   Terminal::Reason_Name(terminal.reason()),
                                   " ", terminal.message()));
      break;
  }
  FinishRequest(request, std::move(finish));
}

void Core::On(const WorkerLeaving& event) {
  Worker* worker = FindWorker(event.link);
  if (worker == nullptr) return;
  Info(absl::StrCat("worker ", worker->hello.worker_id(), " is leaving"));
  if (worker->admitted()) worker->state = v1::WorkerInfo::DRAINING;
}

void Core::On(const WorkerLost& event) { Lose(event.link, event.reason); }

void Core::On(const WorkerDrained& event) {
  Worker* worker = FindWorker(event.worker_id);
  if (worker == nullptr || worker->state != v1::WorkerInfo::READY) return;
  worker->state = v1::WorkerInfo::DRAINING;
  Emit(SendDrain{worker->link});
  Info(absl::StrCat("worker ", event.worker_id, " is draining"));
}

void Core::On(const WorkerResumed& event) {
  Worker* worker = FindWorker(event.worker_id);
  if (worker == nullptr || worker->state != v1::WorkerInfo::DRAINING) return;
  worker->state = v1::WorkerInfo::READY;
  Info(absl::StrCat("worker ", event.worker_id, " is resumed"));
}

void Core::Lose(LinkNumber link, const std::string& reason) {
  const auto found = workers_.find(link);
  if (found == workers_.end()) return;
  const Worker worker = std::move(found->second);
  workers_.erase(found);
  Info(absl::StrCat("worker ", worker.hello.worker_id(), " is gone (", reason,
                    "), ", worker.running.size(), " requests with it"));
  // Last first, each to the head: the order of arrival is kept.
  for (auto at = worker.running.rbegin(); at != worker.running.rend(); ++at) {
    Request& request = requests_.at(*at);
    if (++request.losses >= options_.limits.max_attempts()) {
      FinishRequest(
          &request,
          Failed(absl::StatusCode::kAborted, "WORKERS_LOST",
                 absl::StrCat("the request was lost with ", request.losses,
                              " workers and is not tried again")));
    } else if (options_.mode == v1::Determinism::FAST &&
               !request.delivered.empty() &&
               !request.spec->allow_divergent_resume) {
      FinishRequest(&request,
                    Failed(absl::StatusCode::kAborted, "WORKER_LOST",
                           "the worker was lost, and in mode FAST another "
                           "could go on differently; set "
                           "allow_divergent_resume to accept that"));
    } else {
      Enqueue(&request, End::kHead);
    }
  }
}

// --- Time -------------------------------------------------------------------

void Core::On(const Tick&) {
  const absl::Duration beat_limit =
      absl::Milliseconds(options_.limits.heartbeat_timeout_ms());
  std::vector<std::pair<LinkNumber, std::string>> dead;
  for (const auto& [link, worker] : workers_) {
    if (now_ - worker.last_beat > beat_limit) {
      dead.emplace_back(
          link, absl::StrCat("no heartbeat for ",
                             absl::FormatDuration(now_ - worker.last_beat)));
    } else if (worker.heartbeat.step_age_ms() >
               options_.limits.step_stall_ms()) {
      dead.emplace_back(link,
                        absl::StrCat("its step has taken ",
                                     worker.heartbeat.step_age_ms(), " ms"));
    }
  }
  for (const auto& [link, reason] : dead) {
    Emit(CloseLink{link, absl::AbortedError(reason)});
    Lose(link, reason);
  }
  ExpireQueued();
}

void Core::ExpireQueued() {
  const absl::Duration patience =
      absl::Milliseconds(options_.limits.worker_wait_ms());
  std::set<std::string> served;
  for (const auto& [link, worker] : workers_) {
    if (worker.state == v1::WorkerInfo::READY) {
      served.insert(worker.numerics.fingerprint());
    }
  }
  for (auto& [pool, queue] : queues_) {
    const bool stranded =
        pool.empty() ? served.empty() : !served.contains(pool);
    for (auto at = queue.begin(); at != queue.end();) {
      Request& request = requests_.at(*at++);
      request.stranded_since = stranded ? std::min(request.stranded_since, now_)
                                        : absl::InfiniteFuture();
      if (request.spec->deadline <= now_) {
        FinishRequest(&request,
                      Failed(absl::StatusCode::kDeadlineExceeded, "DEADLINE",
                             "the deadline passed while the request waited"));
      } else if (now_ - request.stranded_since > patience) {
        Finish finish =
            Failed(absl::StatusCode::kUnavailable, "NO_WORKER",
                   absl::StrCat("no worker that may serve the request came "
                                "back within limits.worker_wait_ms (",
                                options_.limits.worker_wait_ms(), ")"));
        finish.retry_after = absl::Seconds(1);
        FinishRequest(&request, std::move(finish));
      }
    }
  }
  std::erase_if(queues_,
                [](const auto& entry) { return entry.second.empty(); });
}

// --- Small parts ------------------------------------------------------------

void Core::FinishRequest(Request* request, Finish finish) {
  finish.request = request->spec->number;
  Forget(finish.request);
  Emit(std::move(finish));
}

void Core::Forget(RequestNumber number) {
  const auto found = requests_.find(number);
  Request& request = found->second;
  if (Worker* worker = FindWorker(request.link)) {
    worker->running.erase(number);
  } else if (request.link == 0) {
    Dequeue(&request);
  }
  ids_in_flight_.erase(request.spec->request_id);
  requests_.erase(found);
}

Finish Core::Failed(absl::StatusCode code, std::string reason,
                    std::string message) const {
  Finish finish;
  finish.status = absl::Status(code, message);
  finish.error_reason = std::move(reason);
  return finish;
}

int64_t Core::KvCost(const Request& request, const Worker& worker) const {
  const int64_t block = worker.capacity.block_tokens();
  const int64_t tokens =
      static_cast<int64_t>(request.spec->prompt.size()) + request.max_tokens;
  return (tokens + block - 1) / block * block;
}

absl::Duration Core::RetryAfter() const {
  // The queue drains at (places / mean duration) requests a second.
  int64_t places = 0;
  for (const auto& [link, worker] : workers_) {
    places += worker.capacity.sequences();
  }
  const absl::Duration wait =
      mean_duration_ * queued() / std::max<int64_t>(1, places);
  return std::clamp(wait, absl::Milliseconds(100), absl::Seconds(60));
}

void Core::UpdateReadiness() {
  const bool ready = Primary() != nullptr;
  if (ready == ready_) return;
  ready_ = ready;
  Emit(SetReady{ready});
}

// New requests go to the pool of the worker that was admitted first: during a
// rolling upgrade that is the old pool until its last worker drains or leaves.
const Core::Worker* Core::Primary() const {
  for (const auto& [link, worker] : workers_) {
    if (worker.state == v1::WorkerInfo::READY) return &worker;
  }
  return nullptr;
}

std::string Core::PrimaryFingerprint() const {
  const Worker* worker = Primary();
  return worker == nullptr ? "" : worker->numerics.fingerprint();
}

const v1::Numerics* Core::PrimaryNumerics() const {
  const Worker* worker = Primary();
  return worker == nullptr ? nullptr : &worker->numerics;
}

int32_t Core::MaxContextTokens() const {
  const Worker* worker = Primary();
  if (worker == nullptr) return 0;
  const int32_t limit = options_.limits.max_context_tokens();
  return limit == 0 ? worker->max_context_tokens
                    : std::min(limit, worker->max_context_tokens);
}

Core::Worker* Core::FindWorker(LinkNumber link) {
  const auto found = workers_.find(link);
  return found == workers_.end() ? nullptr : &found->second;
}

Core::Worker* Core::FindWorker(const std::string& worker_id) {
  for (auto& [link, worker] : workers_) {
    if (worker.hello.worker_id() == worker_id) return &worker;
  }
  return nullptr;
}

std::vector<v1::WorkerInfo> Core::Workers(absl::Time now) const {
  std::vector<v1::WorkerInfo> infos;
  for (const auto& [link, worker] : workers_) {
    v1::WorkerInfo& info = infos.emplace_back();
    info.set_worker_id(worker.hello.worker_id());
    info.set_device(worker.hello.device());
    info.set_state(worker.state);
    if (worker.admitted()) *info.mutable_numerics() = worker.numerics;
    info.set_epoch(worker.epoch);
    info.set_running_sequences(static_cast<int32_t>(worker.running.size()));
    info.set_free_sequences(worker.free_sequences());
    info.set_free_kv_tokens(worker.free_kv_tokens());
    info.set_steps(worker.heartbeat.steps());
    info.set_heartbeat_age_ms(
        absl::ToInt64Milliseconds(now - worker.last_beat));
    info.set_kv_blocks_used(worker.heartbeat.kv_blocks_used());
    info.set_kv_blocks_total(worker.capacity.kv_blocks());
  }
  std::sort(infos.begin(), infos.end(), [](const auto& a, const auto& b) {
    return a.worker_id() < b.worker_id();
  });
  return infos;
}

void Core::Info(std::string text) {
  Emit(Log{Log::Level::kInfo, std::move(text)});
}

void Core::Warn(std::string text) {
  Emit(Log{Log::Level::kWarning, std::move(text)});
}

}  // namespace invar::scheduler
