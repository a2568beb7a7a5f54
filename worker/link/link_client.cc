#include "worker/link/link_client.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/engine/steady_clock.h"

namespace invar {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(100);
constexpr absl::Duration kLongestPause = absl::Seconds(1);
constexpr absl::Duration kHangUp = absl::Seconds(2);

// Before the config comes, nothing says how large its messages may be.
constexpr int kReceiveBytes = 65 << 20;

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1'000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1'000);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(kReceiveBytes);
  arguments.SetCompressionAlgorithm(GRPC_COMPRESS_NONE);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(),
                                   arguments);
}

}  // namespace

LinkClient::LinkClient(LinkIdentity identity, Replica* replica)
    : identity_(std::move(identity)),
      replica_(replica),
      stub_(worker::v1::WorkerLinkService::NewStub(
          MakeChannel(identity_.scheduler))),
      pause_(kFirstPause),
      thread_([this] { Run(); }) {}

LinkClient::~LinkClient() { Stop(); }

void LinkClient::Leave() {
  absl::MutexLock lock(&mutex_);
  leaving_ = true;
  if (attachment_ != nullptr) attachment_->Leave();
}

void LinkClient::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    if (attachment_ != nullptr) {
      attachment_->Finish();
      if (!attachment_->WaitDone(kHangUp).has_value()) attachment_->Cancel();
    }
  }
  if (thread_.joinable()) thread_.join();
}

void LinkClient::Run() {
  do {
    AttachOnce();
  } while (!superseded_ && Pause(pause_) && AwaitProgress());
  absl::MutexLock lock(&mutex_);
  ended_ = true;
}

bool LinkClient::admitted() {
  absl::MutexLock lock(&mutex_);
  return attachment_ != nullptr && attachment_->admitted();
}

void LinkClient::WaitUntilEnded() {
  absl::MutexLock lock(&mutex_, absl::Condition(&ended_));
}

bool LinkClient::AwaitProgress() {
  const auto step_age = [this] {
    const int64_t now_ms = absl::ToUnixMillis(SteadyNow());
    return absl::Milliseconds(replica_->progress().Beat(now_ms).step_age_ms());
  };
  if (step_age() <= step_stall_) return true;
  spdlog::error(
      "a step has taken {} s, over limits.step_stall_ms; scheduler {} is "
      "dialled when it ends",
      absl::ToInt64Seconds(step_age()), identity_.scheduler);
  awaits_progress_ = true;
  while (step_age() > step_stall_) {
    if (!Pause(kLongestPause)) return false;
  }
  awaits_progress_ = false;
  return true;
}

void LinkClient::AttachOnce() {
  std::shared_ptr<Attachment> attachment;
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_ || leaving_) return;
    attachment = Attachment::Start(identity_, replica_, stub_.get());
    attachment_ = attachment;
  }
  std::optional<grpc::Status> status;
  do {
    attachment->Beat();
    status = attachment->WaitDone(attachment->beat_interval());
  } while (!status.has_value());
  attachment->Close();
  LogEnd(attachment.get(), *status);
  step_stall_ = std::min(step_stall_, attachment->step_stall());
  pause_ = attachment->configured() && attachment->declined().empty()
               ? kFirstPause
               : std::min(2 * pause_, kLongestPause);
  absl::MutexLock lock(&mutex_);
  attachment_ = nullptr;
}

void LinkClient::LogEnd(Attachment* attachment, const grpc::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_ || leaving_) return;
  }
  const std::string& scheduler = identity_.scheduler;
  if (status.error_code() == grpc::StatusCode::ABORTED) {
    superseded_ = true;
    spdlog::error(
        "scheduler {} ended the link: another worker attached as \"{}\"; give "
        "each worker its own --worker-id",
        scheduler, identity_.worker_id);
    return;
  }
  const std::string declined = attachment->declined();
  const std::string reason =
      status.ok() ? "it hung up" : status.error_message();
  if (attachment->configured() && declined.empty()) {
    last_failure_.clear();
    spdlog::warn(
        "lost scheduler {} ({}); its requests here are dropped, dialling again",
        scheduler, reason);
    return;
  }
  // A try that failed like the one before is no news.
  const std::string failure =
      declined.empty() ? absl::StrCat("code ", status.error_code()) : declined;
  if (std::exchange(last_failure_, failure) == failure) return;
  if (replica_->load_failed()) return;  // main says it, and exits
  if (declined.empty()) {
    spdlog::warn("no link to scheduler {} yet ({}); dialling on", scheduler,
                 reason);
  } else {
    spdlog::error("cannot serve scheduler {}: {}", scheduler, declined);
  }
}

bool LinkClient::Pause(absl::Duration duration) {
  absl::MutexLock lock(&mutex_);
  const auto ends = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return stopping_ || leaving_;
  };
  return !mutex_.AwaitWithTimeout(absl::Condition(&ends), duration);
}

}  // namespace invar
