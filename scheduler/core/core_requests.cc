// The life of a request: taken or refused, queued, sent, delivered, ended.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "scheduler/core/core.h"

namespace invar::scheduler {

using worker::v1::AttemptReport;
using worker::v1::Terminal;

namespace {

// Workers dial a scheduler that is back within a second (worker/link).
constexpr absl::Duration kSettling = absl::Seconds(5);
// Steps that a worker may have begun since the last report that arrived.
constexpr int64_t kStepsUnreported = 3;

worker::v1::AttemptKey KeyOf(const Request& request, const Sequence& sequence,
                             const Worker& worker) {
  worker::v1::AttemptKey key;
  key.set_epoch(worker.epoch);
  key.set_request(SequenceOf(request.number(), sequence.index));
  key.set_attempt(sequence.attempt);
  return key;
}

}  // namespace

// --- Arrival ----------------------------------------------------------------

bool Core::Settled() const { return now_ - started_ >= kSettling; }

Finish Core::NoSuchPool(const RequestSpec& spec) const {
  const std::string primary = PrimaryFingerprint();
  return Failed(
      absl::StatusCode::kFailedPrecondition, "NO_SUCH_FINGERPRINT",
      absl::StrCat("resume.expected_fingerprint ", spec.expected_fingerprint,
                   " is served by no worker; here it is ",
                   primary.empty() ? "none" : primary));
}

std::optional<Finish> Core::WhyNot(const RequestSpec& spec) const {
  const Worker* primary = workers_.Primary();
  if (primary == nullptr) {
    if (const RefusedWorker* refused = workers_.FindUnwilling()) {
      return Failed(absl::StatusCode::kFailedPrecondition, kNumericsNotHonoured,
                    absl::StrCat("no worker is ready, and worker ",
                                 refused->hello.worker_id(),
                                 " was refused: ", refused->refusal.text));
    }
    Finish finish = Failed(absl::StatusCode::kUnavailable, "NO_WORKER",
                           "no worker is ready; start one with invar-worker, "
                           "or see `invar workers`");
    finish.retry_after = absl::Seconds(1);
    return finish;
  }
  if (requests_.IsInFlight(spec.request_id)) {
    return Failed(absl::StatusCode::kAlreadyExists, "REQUEST_IN_FLIGHT",
                  absl::StrCat("a request with request_id \"", spec.request_id,
                               "\" is in flight; wait for it or choose "
                               "another id"));
  }
  if (!spec.expected_fingerprint.empty() &&
      !workers_.HasPool(spec.expected_fingerprint) && Settled()) {
    return NoSuchPool(spec);
  }
  if (options_.mode == v1::Determinism::FAST && !spec.resume_tokens.empty() &&
      !spec.allow_divergent_resume) {
    return Failed(absl::StatusCode::kFailedPrecondition, "DIVERGENT_RESUME",
                  "in mode FAST the rest could differ from what was begun; set "
                  "allow_divergent_resume to accept that, or leave resume out "
                  "to begin again");
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
  if (static_cast<int64_t>(spec.resume_tokens.size()) > MaxOutput(spec)) {
    return Failed(
        absl::StatusCode::kInvalidArgument, "BAD_FIELD",
        absl::StrCat("resume.token_ids are ", spec.resume_tokens.size(),
                     "; max_tokens is ", MaxOutput(spec)));
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

int32_t Core::MaxOutput(const RequestSpec& spec) const {
  const int64_t room =
      MaxContextTokens() - static_cast<int64_t>(spec.prompt.size());
  return spec.max_tokens.value_or(static_cast<int32_t>(
      std::min<int64_t>(room, options_.limits.default_max_tokens())));
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
  request.pool = spec.expected_fingerprint;
  request.pool_unseen =
      !request.pool.empty() && !workers_.HasPool(request.pool);
  request.max_tokens = MaxOutput(spec);
  for (int32_t index = 0; index < spec.answers; ++index) {
    Sequence& sequence = request.sequences.emplace_back();
    sequence.index = index;
    sequence.delivered = spec.resume_tokens;
  }
  requests_.Add(std::move(request));
}

void Core::On(const RequestAbandoned& event) {
  Request* request = requests_.Find(event.request);
  if (request == nullptr) return;
  FinishRequest(request, Failed(absl::StatusCode::kCancelled, "ABANDONED",
                                "nobody waits for the answer any more"));
}

void Core::On(const AnswerStopped& event) {
  Request* request = requests_.Find(event.request);
  if (request == nullptr) return;
  Sequence& sequence = request->sequences[event.index];
  if (sequence.state == Sequence::State::kEnded) return;
  Cancel(*request, &sequence);
  sequence.state = Sequence::State::kEnded;
  if (request->NextWaiting() == nullptr) requests_.Dequeue(request);
  FinishIfEnded(request);
}

// --- Dispatch ---------------------------------------------------------------

void Core::Dispatch() {
  // First come, first served: a request that finds no room blocks those behind
  // it, so that none starves. Begun requests, which have a pool, go first.
  const std::string primary = PrimaryFingerprint();
  bool primary_blocked = false;
  for (const auto& [pool, queue] : requests_.queues()) {
    if (pool.empty() || DispatchQueue(queue, pool)) continue;
    primary_blocked |= pool == primary;
  }
  const auto unbound = requests_.queues().find("");
  if (unbound != requests_.queues().end() && !primary_blocked) {
    DispatchQueue(unbound->second, primary);
  }
}

bool Core::DispatchQueue(const std::list<RequestNumber>& queue,
                         const std::string& pool) {
  while (!queue.empty()) {
    if (!TryDispatch(requests_.Find(queue.front()), pool)) return false;
  }
  return true;
}

bool Core::TryDispatch(Request* request, const std::string& pool) {
  const RequestNumber number = request->number();
  while (Sequence* sequence = request->NextWaiting()) {
    Worker* worker = Choose(request, *sequence, pool);
    if (requests_.Find(number) == nullptr) return true;  // Finished.
    if (worker == nullptr) {
      // A part of it may run by now, and binds the rest to this pool.
      if (request->queue != request->pool) {
        requests_.Enqueue(request, RequestTable::End::kHead);
      }
      return false;
    }
    Submit(request, sequence, worker);
  }
  requests_.Dequeue(request);
  return true;
}

Worker* Core::Choose(Request* request, const Sequence& sequence,
                     const std::string& pool) {
  const int64_t tokens = request->submit_tokens(sequence);
  int64_t most_tokens = -1;  // that a worker of the pool can hold
  int64_t most_share = -1;   // of it, that it can ever grant to us
  Worker* best = nullptr;
  for (auto& [link, worker] : workers_.all()) {
    if (worker.state != v1::WorkerInfo::READY) continue;
    if (worker.fingerprint() != pool) continue;
    most_tokens = std::max(most_tokens, worker.kv_tokens());
    most_share = std::max(most_share, worker.share_kv_tokens);
    // The worker preempts under pressure, and so need not hold all at once;
    // but the last sequence that it keeps must fit in it as a whole.
    if (request->most_tokens() > worker.kv_tokens() ||
        worker.free_sequences() < 1 ||
        worker.free_kv_tokens() < worker.KvCost(tokens)) {
      continue;
    }
    if (best == nullptr || worker.running.size() < best->running.size()) {
      best = &worker;
    }
  }
  if (best != nullptr || most_tokens < 0) return best;
  if (request->most_tokens() > most_tokens) {
    FinishRequest(
        request,
        Failed(absl::StatusCode::kOutOfRange, "KV_CACHE_TOO_SMALL",
               absl::StrCat(
                   "prompt and max_tokens need ", request->most_tokens(),
                   " tokens of KV cache; a whole worker has ", most_tokens,
                   "; lower max_tokens or raise "
                   "kv_cache.memory_bytes")));
  } else if (tokens > most_share) {
    FinishRequest(
        request,
        Failed(absl::StatusCode::kOutOfRange, "KV_SHARE_TOO_SMALL",
               absl::StrCat("the prompt needs ", tokens,
                            " tokens of KV cache; this scheduler's share of a "
                            "worker has ",
                            most_share,
                            "; raise kv_cache.memory_bytes or start the "
                            "workers with fewer schedulers")));
  }
  return nullptr;
}

void Core::Submit(Request* request, Sequence* sequence, Worker* worker) {
  const RequestSpec& spec = *request->spec;
  request->pool = worker->fingerprint();
  request->pool_unseen = false;
  sequence->state = Sequence::State::kRunning;
  sequence->link = worker->link;
  ++sequence->attempt;
  sequence->submission = ++submissions_;
  sequence->got_on = false;
  worker->running.insert(SequenceOf(spec.number, sequence->index));
  worker->spent_sequences += 1;
  worker->spent_kv_tokens += worker->KvCost(request->submit_tokens(*sequence));
  if (request->begun_in != request->pool) {
    request->begun_in = request->pool;
    Emit(Begin{spec.number, request->pool, request->max_tokens});
  }
  SendSubmit submit;
  submit.link = worker->link;
  submit.key = KeyOf(*request, *sequence, *worker);
  submit.request = request->spec;
  submit.index = sequence->index;
  submit.delivered = sequence->delivered;
  submit.max_tokens = request->max_tokens;
  // The answers share a prompt: the first one's worker scores it.
  submit.prompt_logprobs =
      spec.prompt_logprobs && sequence->index == 0 &&
      request->prompt_logprobs_delivered + 1 < request->prompt_tokens();
  if (spec.deadline != absl::InfiniteFuture()) {
    submit.time_left = spec.deadline - now_;
  }
  Emit(std::move(submit));
}

// --- What a worker reports --------------------------------------------------

void Core::OnAttempt(Worker* worker, const AttemptReport& report) {
  const SequenceNumber number = report.key().request();
  if (!worker->running.contains(number)) return;  // Stale.
  Request* request = requests_.Find(RequestOf(number));
  Sequence* sequence = &request->sequences[IndexOf(number)];
  if (report.key().epoch() != worker->epoch ||
      report.key().attempt() != sequence->attempt) {
    return;  // Stale.
  }
  if (!DeliverNew(request, sequence, report)) {
    FinishRequest(
        request,
        Failed(absl::StatusCode::kInternal, "WORKER_BUG",
               absl::StrCat("worker ", worker->id(), " reported position ",
                            report.position(), " out of order")));
    return;
  }
  if (!report.has_terminal()) return;
  worker->running.erase(number);
  EndAttempt(request, sequence, report.terminal());
}

bool Core::DeliverNew(Request* request, Sequence* sequence,
                      AttemptReport report) {
  if (report.prompt_logprobs_size() > 0) {
    // A later attempt scores the prompt again: pass on only what is new.
    const int32_t next = request->prompt_logprobs_delivered + 1;
    const int32_t end =
        report.prompt_position() + report.prompt_logprobs_size();
    if (report.prompt_position() > next || end > request->prompt_tokens()) {
      return false;
    }
    const int32_t old = std::min(next, end) - report.prompt_position();
    report.mutable_prompt_logprobs()->ExtractSubrange(0, old, nullptr);
    report.set_prompt_position(report.prompt_position() + old);
    request->prompt_logprobs_delivered = std::max(next, end) - 1;
    if (end > next) request->losses = 0;
    sequence->got_on = true;
  }
  if (report.token_ids_size() > 0) {
    const int64_t next = request->submit_tokens(*sequence);
    if (report.position() != next ||
        next + report.token_ids_size() > request->most_tokens()) {
      return false;
    }
    sequence->delivered.insert(sequence->delivered.end(),
                               report.token_ids().begin(),
                               report.token_ids().end());
    request->losses = 0;
    sequence->got_on = true;
  }
  if (report.token_ids_size() > 0 || report.prompt_logprobs_size() > 0) {
    report.clear_terminal();
    Emit(Deliver{request->number(), sequence->index, std::move(report)});
  }
  return true;
}

void Core::EndAttempt(Request* request, Sequence* sequence,
                      const Terminal& terminal) {
  sequence->state = Sequence::State::kWaiting;
  switch (terminal.reason()) {
    case Terminal::STOP:
    case Terminal::LENGTH:
      sequence->state = Sequence::State::kEnded;
      Emit(AnswerEnded{request->number(), sequence->index, terminal.reason()});
      return FinishIfEnded(request);
    case Terminal::REJECTED:
      return Requeue(request);
    case Terminal::DEADLINE:
      return FinishRequest(
          request,
          Failed(absl::StatusCode::kDeadlineExceeded, "DEADLINE",
                 "the deadline passed before the answer was complete"));
    case Terminal::NOT_FINITE:
      return FinishRequest(
          request, Failed(absl::StatusCode::kDataLoss, "NOT_FINITE",
                          absl::StrCat("the model produced a value that is not "
                                       "finite: ",
                                       terminal.message(),
                                       "; check the checkpoint and its "
                                       "scales")));
    default:
      return FinishRequest(
          request, Failed(absl::StatusCode::kInternal, "WORKER_BUG",
                          absl::StrCat("the worker ended the request: ",
                                       Terminal::Reason_Name(terminal.reason()),
                                       " ", terminal.message())));
  }
}

std::set<RequestNumber> Core::Suspects(
    const std::set<SequenceNumber>& running) {
  std::set<RequestNumber> suspects;
  std::map<int64_t, std::pair<RequestNumber, int64_t>> begun;  // and tokens
  for (const SequenceNumber number : running) {
    const Request& request = *requests_.Find(RequestOf(number));
    const Sequence& sequence = request.sequences[IndexOf(number)];
    if (sequence.got_on) {
      suspects.insert(request.number());
    } else {
      begun[sequence.submission] = {request.number(),
                                    request.submit_tokens(sequence)};
    }
  }
  // Nobody overtakes in a worker: it cannot have come to those behind what it
  // computes in the few steps whose reports were lost with it.
  int64_t tokens = kStepsUnreported * options_.limits.max_step_tokens();
  for (const auto& [submission, one] : begun) {
    if (tokens <= 0) break;
    suspects.insert(one.first);
    tokens -= one.second;
  }
  return suspects;
}

void Core::OnLoss(const std::set<SequenceNumber>& running, bool died) {
  std::set<RequestNumber> suspects;
  if (died) suspects = Suspects(running);
  std::map<RequestNumber, bool> lost;  // whether with output
  for (const SequenceNumber number : running) {
    Sequence& sequence =
        requests_.Find(RequestOf(number))->sequences[IndexOf(number)];
    sequence.state = Sequence::State::kWaiting;
    lost[RequestOf(number)] |= !sequence.delivered.empty();
  }
  // Last first, each to the head: the order of arrival is kept.
  for (auto at = lost.rbegin(); at != lost.rend(); ++at) {
    Request* request = requests_.Find(at->first);
    // One that has got on since the last loss did not kill both workers: what
    // kills a worker does so again at the same position.
    request->losses += suspects.contains(at->first) ? 1 : 0;
    if (request->losses >= options_.limits.max_attempts()) {
      FinishRequest(
          request,
          Failed(absl::StatusCode::kAborted, "WORKERS_LOST",
                 absl::StrCat("the request was lost with ", request->losses,
                              " workers in a row, without a token in between, "
                              "and is not tried again")));
    } else if (options_.mode == v1::Determinism::FAST && at->second &&
               !request->spec->allow_divergent_resume) {
      FinishRequest(request, Failed(absl::StatusCode::kAborted, "WORKER_LOST",
                                    "the worker was lost, and in mode FAST "
                                    "another could go on differently; set "
                                    "allow_divergent_resume to accept that"));
    } else {
      Requeue(request);
    }
  }
}

void Core::Requeue(Request* request) {
  if (!request->Begun()) request->pool = request->spec->expected_fingerprint;
  requests_.Enqueue(request, RequestTable::End::kHead);
}

// --- The end ----------------------------------------------------------------

void Core::ExpireQueued() {
  const absl::Duration patience =
      absl::Milliseconds(options_.limits.worker_wait_ms());
  const std::set<std::string> served = workers_.ReadyPools();
  for (auto& [pool, queue] : requests_.queues()) {
    const bool stranded =
        pool.empty() ? served.empty() : !served.contains(pool);
    for (auto at = queue.begin(); at != queue.end();) {
      Request& request = *requests_.Find(*at++);
      request.stranded_since = stranded ? std::min(request.stranded_since, now_)
                                        : absl::InfiniteFuture();
      request.pool_unseen &= !workers_.HasPool(pool);
      if (request.spec->deadline <= now_) {
        FinishRequest(&request,
                      Failed(absl::StatusCode::kDeadlineExceeded, "DEADLINE",
                             "the deadline passed while the request waited"));
      } else if (request.pool_unseen && Settled()) {
        FinishRequest(&request, NoSuchPool(*request.spec));
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
  requests_.DropEmptyQueues();
}

void Core::Cancel(const Request& request, Sequence* sequence) {
  if (sequence->state != Sequence::State::kRunning) return;
  Worker* worker = workers_.Find(sequence->link);
  worker->running.erase(SequenceOf(request.number(), sequence->index));
  Emit(SendCancel{worker->link, KeyOf(request, *sequence, *worker)});
}

void Core::FinishIfEnded(Request* request) {
  if (!request->Ended()) return;
  mean_duration_ += (now_ - request->arrived - mean_duration_) / 8;
  FinishRequest(request, Finish());
}

void Core::FinishRequest(Request* request, Finish finish) {
  for (Sequence& sequence : request->sequences) Cancel(*request, &sequence);
  finish.request = request->number();
  requests_.Remove(finish.request);
  Emit(std::move(finish));
}

Finish Core::Failed(absl::StatusCode code, std::string reason,
                    std::string message) const {
  Finish finish;
  finish.status = absl::Status(code, message);
  finish.error_reason = std::move(reason);
  return finish;
}

absl::Duration Core::RetryAfter() const {
  // The queue drains at (places / mean duration) requests a second.
  int64_t places = 0;
  for (const auto& [link, worker] : workers_.all()) {
    places += worker.capacity.sequences();
  }
  const absl::Duration wait =
      mean_duration_ * queued() / std::max<int64_t>(1, places);
  return std::clamp(wait, absl::Milliseconds(100), absl::Seconds(60));
}

}  // namespace invar::scheduler
