// The life of a worker: attached, loaded, admitted or refused, lost.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/numerics.h"
#include "common/version.h"
#include "scheduler/core/core.h"

namespace invar::scheduler {
namespace {

std::string Short(const std::string& digest) { return digest.substr(0, 12); }

}  // namespace

void Core::On(const WorkerAttached& event) {
  const std::string& id = event.hello.worker_id();
  if (event.hello.protocol_version() != kLinkProtocolVersion) {
    return Refuse(
        event.link, event.hello,
        {"PROTOCOL_DIFFERS",
         absl::StrCat("the worker speaks link protocol ",
                      event.hello.protocol_version(), ", this scheduler ",
                      kLinkProtocolVersion, "; run the same version of both")});
  }
  if (Worker* old = workers_.Find(id)) {
    const LinkNumber link = old->link;
    Emit(CloseLink{link, absl::AbortedError(absl::StrCat(
                             "worker ", id,
                             " attached again; if these are "
                             "two workers, give each its own --worker-id"))});
    Lose(link, "it attached again");
  }
  Worker& worker = workers_.Add(event.link, event.hello);
  worker.last_beat = now_;
  // One that was refused dials again and again.
  if (workers_.FindRefused(id) == nullptr) {
    Info(absl::StrCat("worker ", id, " (", event.hello.device(),
                      ") attached, epoch ", worker.epoch));
  }
  Emit(SendConfigure{event.link, worker.epoch});
}

std::optional<Refusal> Core::WhyRefused(
    const worker::v1::Loaded& loaded) const {
  const v1::Numerics& numerics = loaded.numerics();
  if (loaded.config_digest() != options_.config_digest) {
    return Refusal{
        "CONFIG_DIFFERS",
        absl::StrCat("it serves the config with digest ",
                     Short(loaded.config_digest()), ", this scheduler's is ",
                     Short(options_.config_digest), "; restart the worker")};
  }
  if (numerics.tokenizer_digest() != options_.tokenizer_digest) {
    return Refusal{"TOKENIZER_DIFFERS",
                   absl::StrCat("its tokenizer differs from the scheduler's "
                                "(tokenizer_digest: ",
                                Short(options_.tokenizer_digest), " against ",
                                Short(numerics.tokenizer_digest()),
                                "); both must read the same checkpoint")};
  }
  const std::string mode = v1::Determinism::Mode_Name(options_.mode);
  if (const std::string plan = PlanEntry(numerics, "mode"); plan != mode) {
    return Refusal{
        kNumericsNotHonoured,
        absl::StrCat("it does not honour determinism.mode (plan.mode: ", mode,
                     " against ", plan.empty() ? "nothing" : plan,
                     "); run a build that does, or change the config")};
  }
  if (numerics.fingerprint() != Fingerprint(numerics)) {
    return Refusal{"FINGERPRINT_WRONG",
                   "its fingerprint is not the hash of its numerics; run the "
                   "same version of scheduler and worker"};
  }
  if (loaded.capacity().block_tokens() < 1 ||
      loaded.capacity().kv_blocks() < 1 || loaded.max_context_tokens() < 1) {
    return Refusal{"NO_CAPACITY", "it reports no capacity"};
  }
  return std::nullopt;
}

void Core::Refuse(LinkNumber link, const worker::v1::Hello& hello,
                  const Refusal& refusal) {
  if (workers_.Refuse(hello, refusal, now_)) {
    Warn(
        absl::StrCat("worker ", hello.worker_id(), " refused: ", refusal.text));
  }
  Emit(SendRefused{link, refusal});
}

void Core::On(const WorkerLoaded& event) {
  Worker* worker = workers_.Find(event.link);
  if (worker == nullptr) return;
  const auto& loaded = event.loaded;
  worker->last_beat = now_;
  if (const std::string why = WhyDead(*worker); !why.empty()) {
    return Bury(event.link, why);  // It dialled again with its step stuck.
  }
  worker->numerics = loaded.numerics();
  worker->capacity = loaded.capacity();
  worker->max_context_tokens = loaded.max_context_tokens();
  worker->TakeGrant(loaded.credits());
  worker->share_kv_tokens = loaded.credits().kv_tokens();
  const std::string& id = worker->id();
  if (const std::optional<Refusal> refusal = WhyRefused(loaded)) {
    worker->state = v1::WorkerInfo::REFUSED;
    return Refuse(event.link, worker->hello, *refusal);
  }
  const Worker* primary = workers_.Primary();
  workers_.Admit(worker);
  Emit(SendAdmitted{event.link, worker->fingerprint()});
  Info(absl::StrCat("worker ", id, " admitted to pool ",
                    Short(worker->fingerprint())));
  if (primary != nullptr && primary->fingerprint() != worker->fingerprint()) {
    Warn(absl::StrCat("worker ", id, " differs from pool ",
                      Short(primary->fingerprint()), " in ",
                      FirstDifference(primary->numerics, worker->numerics),
                      "; it forms a pool of its own"));
  }
}

void Core::On(const WorkerLoadFailed& event) {
  Worker* worker = workers_.Find(event.link);
  if (worker == nullptr) return;
  const auto& failure = event.failure;
  const Refusal refusal = {
      failure.reason().empty() ? "LOAD_FAILED" : failure.reason(),
      absl::StrCat("it cannot serve the config: ", failure.message())};
  if (workers_.Refuse(worker->hello, refusal, now_)) {
    Warn(absl::StrCat("worker ", worker->id(), " refused: ", refusal.text));
  }
  Lose(event.link, "it could not load");
}

void Core::On(const WorkerBeat& event) {
  Worker* worker = workers_.Find(event.link);
  if (worker == nullptr) return;
  worker->last_beat = now_;
  worker->heartbeat = event.heartbeat;
}

void Core::On(const WorkerReported& event) {
  Worker* worker = workers_.Find(event.link);
  if (worker == nullptr || !worker->admitted()) return;
  for (const auto& report : event.report.attempts()) OnAttempt(worker, report);
  if (event.report.has_credits()) worker->TakeGrant(event.report.credits());
}

void Core::On(const WorkerLeaving& event) {
  Worker* worker = workers_.Find(event.link);
  if (worker == nullptr) return;
  Info(absl::StrCat("worker ", worker->id(), " is leaving"));
  worker->leaving = true;
  if (worker->admitted()) worker->state = v1::WorkerInfo::DRAINING;
}

void Core::On(const WorkerLost& event) { Lose(event.link, event.reason); }

void Core::On(const WorkerDrained& event) {
  Worker* worker = workers_.Find(event.worker_id);
  if (worker == nullptr || worker->state != v1::WorkerInfo::READY) return;
  worker->state = v1::WorkerInfo::DRAINING;
  Emit(SendDrain{worker->link});
  Info(absl::StrCat("worker ", event.worker_id, " is draining"));
}

void Core::On(const WorkerResumed& event) {
  Worker* worker = workers_.Find(event.worker_id);
  if (worker == nullptr || worker->state != v1::WorkerInfo::DRAINING) return;
  worker->state = v1::WorkerInfo::READY;
  Info(absl::StrCat("worker ", event.worker_id, " is resumed"));
}

void Core::Lose(LinkNumber link, const std::string& reason) {
  const std::optional<Worker> worker = workers_.Remove(link);
  if (!worker.has_value()) return;
  Info(absl::StrCat("worker ", worker->id(), " is gone (", reason, "), ",
                    worker->running.size(), " sequences with it"));
  OnLoss(worker->running, /*died=*/!worker->leaving);
}

std::string Core::WhyDead(const Worker& worker) const {
  const absl::Duration silence = now_ - worker.last_beat;
  if (silence > absl::Milliseconds(options_.limits.heartbeat_timeout_ms())) {
    return absl::StrCat("no heartbeat for ", absl::FormatDuration(silence));
  }
  const int64_t step_age_ms = worker.heartbeat.step_age_ms();
  if (step_age_ms > options_.limits.step_stall_ms()) {
    return absl::StrCat("its step has taken ", step_age_ms, " ms");
  }
  return "";
}

void Core::Bury(LinkNumber link, const std::string& reason) {
  // Not ABORTED, which says that another took its place: it may come back.
  Emit(CloseLink{link, absl::UnavailableError(reason)});
  Lose(link, reason);
}

void Core::LoseSilent() {
  // Nothing was heard while this process itself did not run.
  const absl::Duration beat_limit =
      absl::Milliseconds(options_.limits.heartbeat_timeout_ms());
  const absl::Duration slept = now_ - std::exchange(last_tick_, now_);
  if (slept > beat_limit / 2) {
    for (auto& [link, worker] : workers_.all()) {
      worker.last_beat = std::min(worker.last_beat + slept, now_);
    }
  }
  std::vector<std::pair<LinkNumber, std::string>> dead;
  for (const auto& [link, worker] : workers_.all()) {
    if (std::string why = WhyDead(worker); !why.empty()) {
      dead.emplace_back(link, std::move(why));
    }
  }
  for (const auto& [link, reason] : dead) Bury(link, reason);
}

void Core::UpdateReadiness() {
  const bool ready = workers_.Primary() != nullptr;
  if (ready == ready_) return;
  ready_ = ready;
  Emit(SetReady{ready});
}

}  // namespace invar::scheduler
