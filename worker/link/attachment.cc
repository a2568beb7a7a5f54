#include "worker/link/attachment.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/config.h"
#include "common/status.h"
#include "common/trace.h"
#include "common/version.h"
#include "worker/engine/steady_clock.h"
#include "worker/link/report_splitter.h"

namespace invar {

using worker::v1::AttachRequest;
using worker::v1::AttachResponse;
using worker::v1::AttemptKey;
using worker::v1::Configure;
using worker::v1::StepReport;
using worker::v1::Submit;
using worker::v1::Terminal;

namespace {

// One line for a submit whose client records its trace.
void LogTrace(const Submit& submit, const std::string& scheduler) {
  // It is not this worker's to trust: read again before it meets a log.
  const std::string traceparent = ReadTraceparent(submit.traceparent());
  if (!IsSampled(traceparent)) return;
  const AttemptKey& key = submit.key();
  spdlog::info("submit {}/{}/{} of scheduler {}: {} tokens, at most {} more{}",
               key.epoch(), key.request(), key.attempt(), scheduler,
               submit.total_tokens(), submit.max_tokens(),
               TraceNote(traceparent));
}

}  // namespace

std::shared_ptr<Attachment> Attachment::Start(
    const LinkIdentity& identity, Replica* replica,
    worker::v1::WorkerLinkService::Stub* stub) {
  AttachRequest message;
  worker::v1::Hello* hello = message.mutable_hello();
  hello->set_protocol_version(kLinkProtocolVersion);
  hello->set_worker_id(identity.worker_id);
  hello->set_device(identity.device);
  hello->set_version(kVersion);
  hello->set_config_digest(replica->config_digest());

  std::shared_ptr<Attachment> result(new Attachment(identity, replica));
  result->stream_ =
      std::make_shared<LinkStream>([result](AttachResponse response) {
        result->OnMessage(std::move(response));
      });
  result->stream_->Start(stub, std::move(message));
  return result;
}

std::string Attachment::declined() {
  absl::MutexLock lock(&mutex_);
  return declined_;
}

void Attachment::Decline(absl::string_view reason) {
  absl::MutexLock lock(&mutex_);
  declined_ = std::string(reason);
}

void Attachment::Beat() {
  stream_->SendBeat(replica_->progress().Beat(absl::ToUnixMillis(SteadyNow())));
}

void Attachment::Leave() {
  leaving_ = true;
  AttachRequest message;
  message.mutable_leaving();
  stream_->Send(std::move(message));
}

void Attachment::Close() {
  SessionId session = 0;
  {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
    std::swap(session, session_);
  }
  if (session != 0) replica_->engine().Close(session);
}

SessionId Attachment::session() {
  absl::MutexLock lock(&mutex_);
  return session_;
}

void Attachment::OnMessage(AttachResponse message) {
  switch (message.message_case()) {
    case AttachResponse::kConfigure:
      return OnConfigure(message.configure());
    case AttachResponse::kAdmitted:
      admitted_ = true;
      spdlog::info("scheduler {} admitted this worker to pool {}, epoch {}",
                   identity_.scheduler, message.admitted().fingerprint(),
                   epoch_);
      return;
    case AttachResponse::kRefused:
      return Decline(
          absl::StrCat("it refused this worker: ", message.refused().reason()));
    case AttachResponse::kSubmit:
      if (session() == 0 || IsStale(message.submit().key())) return;
      return OnSubmit(assembler_->Begin(std::move(*message.mutable_submit())));
    case AttachResponse::kSubmitPart:
      if (session() == 0 || IsStale(message.submit_part().key())) return;
      return OnSubmit(assembler_->Append(message.submit_part()));
    case AttachResponse::kCancel:
      if (session() == 0 || IsStale(message.cancel().key())) return;
      return OnCancel(message.cancel().key());
    case AttachResponse::kDrain:
      spdlog::info("scheduler {} drains this worker", identity_.scheduler);
      return;
    case AttachResponse::MESSAGE_NOT_SET:
      spdlog::warn(
          "scheduler {} sent a message that this version ({}) does "
          "not know; it is ignored",
          identity_.scheduler, kVersion);
      return;
  }
}

void Attachment::OnConfigure(const Configure& configure) {
  if (configured_) return;
  const worker::v1::WorkerConfig& config = configure.config();
  step_stall_ms_ = config.limits().step_stall_ms();
  configured_ = true;
  epoch_ = configure.epoch();
  heartbeat_ms_ = config.limits().heartbeat_ms();
  message_bytes_ = config.limits().link_message_bytes();
  stream_->SetMessageBytes(config.limits().link_message_bytes());
  if (ConfigDigest(config) != configure.config_digest()) {
    return OnLoaded(absl::FailedPreconditionError(
        "the config does not have the digest that the scheduler sent with it; "
        "run one version of Invar"));
  }
  replica_->Configure(config,
                      [self = shared_from_this()](const absl::Status& status) {
                        self->OnLoaded(status);
                      });
}

void Attachment::OnLoaded(const absl::Status& status) {
  if (!status.ok()) {
    Decline(status.message());
    AttachRequest message;
    message.mutable_load_failed()->set_code(static_cast<int>(status.code()));
    message.mutable_load_failed()->set_message(std::string(status.message()));
    message.mutable_load_failed()->set_reason(ReasonOf(status));
    stream_->Send(std::move(message));
    stream_->Finish();
    return;
  }
  const Engine& facts = replica_->engine().facts();
  AttachRequest message;
  worker::v1::Loaded* loaded = message.mutable_loaded();
  *loaded->mutable_numerics() = replica_->numerics();
  loaded->set_config_digest(replica_->config_digest());
  const Engine::Options& options = facts.options();
  loaded->mutable_capacity()->set_sequences(options.max_running_sequences);
  loaded->mutable_capacity()->set_kv_blocks(options.kv_blocks);
  loaded->mutable_capacity()->set_block_tokens(kBlockTokens);
  loaded->set_vocab_size(facts.model().config().vocab_size);
  loaded->set_max_context_tokens(
      facts.model().config().max_position_embeddings);
  const CreditAmount share = facts.Share(identity_.place);
  loaded->mutable_credits()->set_sequences(share.sequences);
  loaded->mutable_credits()->set_kv_tokens(share.kv_tokens);

  absl::MutexLock lock(&mutex_);
  if (closed_) return;
  // No submit comes before Loaded is sent, so nobody reads it yet.
  assembler_.emplace(facts.submit_limits(), options.max_running_sequences);
  session_ = replica_->engine().Open(
      identity_.place,
      [stream = stream_, bytes = message_bytes_.load()](StepReport report) {
        for (AttachRequest& part : SplitReport(std::move(report), bytes)) {
          if (!stream->Send(std::move(part))) return;
        }
      });
  stream_->Send(std::move(message));
}

void Attachment::OnSubmit(std::optional<SubmitAssembler::Ready> ready) {
  if (!ready.has_value()) return;
  EngineThread& engine = replica_->engine();
  LogTrace(ready->submit, identity_.scheduler);
  if (!ready->status.ok()) {
    engine.Refuse(session(), std::move(ready->submit),
                  absl::IsInvalidArgument(ready->status) ? Terminal::INVALID
                                                         : Terminal::REJECTED,
                  ready->status.message());
  } else if (leaving_) {
    engine.Refuse(session(), std::move(ready->submit), Terminal::REJECTED,
                  "the worker is leaving");
  } else {
    engine.Submit(session(), std::move(ready->submit));
  }
}

void Attachment::OnCancel(const AttemptKey& key) {
  if (std::optional<Submit> submit = assembler_->Cancel(key)) {
    replica_->engine().Refuse(session(), *std::move(submit),
                              Terminal::CANCELLED, "");
    return;
  }
  replica_->engine().Cancel(session(), key);
}

}  // namespace invar
