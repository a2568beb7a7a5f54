#include "scheduler/scheduler.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <spdlog/spdlog.h>

#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/notification.h"
#include "common/config.h"
#include "common/trace.h"
#include "scheduler/api/admin_service.h"
#include "scheduler/api/inference_service.h"
#include "scheduler/link/worker_link_service.h"
#include "scheduler/metrics.h"

namespace invar::scheduler {
namespace {

constexpr absl::Duration kHousekeeping = absl::Milliseconds(200);
constexpr absl::Duration kShutdownGrace = absl::Seconds(2);
// A worker pings every 20 s (worker/link); anything slower than this is fine.
constexpr int kLeastPingIntervalMs = 5'000;
constexpr int kPingIntervalMs = 20'000;

// Sends each action to whom it concerns.
class Shell final : public ActionHandler {
 public:
  // Set before the first event is posted.
  WorkerLinkService* links = nullptr;
  CoreLoop* loop = nullptr;
  std::function<void(bool)> set_ready;
  AnswerBook answers;
  Metrics metrics;

  void Handle(Action action) override {
    std::visit([this](const auto& one) { On(one); }, action);
  }

 private:
  template <typename ToLink>
  void On(const ToLink& action) {
    links->Send(action);
  }

  void On(const Begin& action) {
    Answer* answer = answers.Find(action.request);
    if (answer == nullptr) return;
    if (!answer->has_begun()) {
      metrics.OnPrompt(static_cast<int64_t>(answer->spec().prompt.size()));
    }
    answer->Handle(action);
  }

  void On(const Deliver& action) {
    Answer* answer = answers.Find(action.request);
    if (answer == nullptr) return;
    const bool first = !answer->has_output();
    const bool stopped = answer->Handle(action);
    metrics.OnOutput(action.report.token_ids_size());
    if (first && answer->has_output()) {
      metrics.OnFirstToken(absl::Now() - answer->arrived());
    }
    if (stopped) loop->Post(AnswerStopped{action.request, action.index});
  }

  void On(const AnswerEnded& action) {
    Answer* answer = answers.Find(action.request);
    if (answer != nullptr) answer->Handle(action);
  }

  void On(const Finish& action) {
    Answer* answer = answers.Find(action.request);
    if (answer == nullptr) return;
    answer->Handle(action);
    std::string reason = answer->reached_length() ? "length" : "stop";
    if (!action.status.ok()) {
      reason = absl::StatusCodeToString(action.status.code());
    }
    const absl::Duration taken = absl::Now() - answer->arrived();
    metrics.OnFinish(reason, taken);
    const RequestSpec& spec = answer->spec();
    if (!action.status.ok() && !absl::IsCancelled(action.status)) {
      spdlog::warn("request {} failed: {}{}", spec.request_id,
                   std::string(action.status.message()),
                   TraceNote(spec.traceparent));
    } else if (IsSampled(spec.traceparent)) {
      spdlog::info("request {}, number {}, ended after {} s: {}{}",
                   spec.request_id, spec.number, absl::ToDoubleSeconds(taken),
                   reason, TraceNote(spec.traceparent));
    }
    answers.Erase(action.request);
  }

  void On(const SetReady& action) {
    set_ready(action.ready);
    spdlog::info(action.ready ? "ready: a worker is admitted"
                              : "not ready: no worker is admitted");
  }

  void On(const Log& action) {
    if (action.level == Log::Level::kWarning) {
      spdlog::warn("{}", action.text);
    } else {
      spdlog::info("{}", action.text);
    }
  }
};

// The host of HOST:PORT, for the address with the port that was chosen.
std::string WithPort(const std::string& address, int port) {
  const size_t colon = address.rfind(':');
  return absl::StrCat(address.substr(0, colon), ":", port);
}

// Listens, or says which field of the config to change.
absl::StatusOr<std::unique_ptr<grpc::Server>> Listen(
    grpc::ServerBuilder* builder, const char* field, std::string* address) {
  int port = 0;
  builder->AddListeningPort(*address, grpc::InsecureServerCredentials(), &port);
  // Without this, two servers share a port in silence.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder->SetDefaultCompressionAlgorithm(GRPC_COMPRESS_NONE);
  builder->SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder->SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  std::unique_ptr<grpc::Server> server = builder->BuildAndStart();
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ", *address,
        "; is the port in use, or the address not this machine's? Change "
        "listen.",
        field, " in the config"));
  }
  *address = WithPort(*address, port);
  return server;
}

class SchedulerProcess final : public Scheduler {
 public:
  SchedulerProcess(v1::ServerConfig config,
                   std::unique_ptr<Tokenizer> tokenizer)
      : config_(std::move(config)),
        tokenizer_(std::move(tokenizer)),
        pool_(config_.limits().api_threads()),
        quota_("invar-api"),
        loop_(CoreOptions(), &shell_),
        links_(WorkerConfig(),
               [this](Event event) { loop_.Post(std::move(event)); }),
        inference_({config_, *tokenizer_, loop_, shell_.answers, pool_,
                    links_.config_digest()}),
        admin_(&loop_) {
    shell_.links = &links_;
    shell_.loop = &loop_;
    shell_.set_ready = [this](bool ready) { SetReady(ready); };
  }

  ~SchedulerProcess() override {
    stop_.Notify();
    if (housekeeper_.joinable()) housekeeper_.join();
    const auto deadline = absl::ToChronoTime(absl::Now() + kShutdownGrace);
    for (auto* server : {&api_server_, &admin_server_, &link_server_}) {
      if (*server != nullptr) (*server)->Shutdown(deadline);
    }
    // No call is left. Both threads use members that go before their owners.
    pool_.Stop();
    loop_.Stop();
  }

  absl::Status Listen() {
    auto* listen = config_.mutable_listen();
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    for (auto step :
         {&SchedulerProcess::ListenLink, &SchedulerProcess::ListenAdmin,
          &SchedulerProcess::ListenApi}) {
      if (auto status = (this->*step)(listen); !status.ok()) return status;
    }
    if (!listen->metrics().empty()) {
      if (auto status = shell_.metrics.Serve(listen->metrics()); !status.ok()) {
        return status;
      }
    }
    housekeeper_ = std::thread([this] { KeepHouse(); });
    return absl::OkStatus();
  }

  const v1::Listen& addresses() const override { return config_.listen(); }

 private:
  Core::Options CoreOptions() const {
    Core::Options options;
    options.limits = config_.limits();
    options.mode = config_.determinism().mode();
    options.tokenizer_digest = tokenizer_->digest();
    options.config_digest = ConfigDigest(WorkerConfig());
    return options;
  }

  worker::v1::WorkerConfig WorkerConfig() const {
    worker::v1::WorkerConfig config = MakeWorkerConfig(config_);
    config.set_tokenizer_vocab_size(tokenizer_->vocab_size());
    config.set_tokenizer_digest(tokenizer_->digest());
    return config;
  }

  absl::Status ListenApi(v1::Listen* listen) {
    grpc::ServerBuilder builder;
    const int bytes = config_.limits().max_message_bytes();
    builder.SetMaxReceiveMessageSize(bytes);
    builder.SetMaxSendMessageSize(bytes);
    quota_.Resize(static_cast<size_t>(config_.limits().grpc_memory_bytes()));
    builder.SetResourceQuota(quota_);
    builder.RegisterService(&inference_);
    auto server = scheduler::Listen(&builder, "api", listen->mutable_api());
    if (!server.ok()) return server.status();
    api_server_ = *std::move(server);
    SetReady(loop_.Read([](const Core& core, absl::Time) {
      return !core.PrimaryFingerprint().empty();
    }));
    return absl::OkStatus();
  }

  absl::Status ListenLink(v1::Listen* listen) {
    grpc::ServerBuilder builder;
    const int bytes = config_.limits().link_message_bytes();
    builder.SetMaxReceiveMessageSize(bytes);
    builder.SetMaxSendMessageSize(bytes);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kPingIntervalMs);
    builder.AddChannelArgument(
        GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
        kLeastPingIntervalMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.RegisterService(&links_);
    auto server = scheduler::Listen(&builder, "worker_link",
                                    listen->mutable_worker_link());
    if (!server.ok()) return server.status();
    link_server_ = *std::move(server);
    return absl::OkStatus();
  }

  absl::Status ListenAdmin(v1::Listen* listen) {
    grpc::ServerBuilder builder;
    builder.RegisterService(&admin_);
    auto server = scheduler::Listen(&builder, "admin", listen->mutable_admin());
    if (!server.ok()) return server.status();
    admin_server_ = *std::move(server);
    return absl::OkStatus();
  }

  // Called by the core loop's thread, and once at the start.
  void SetReady(bool ready) {
    absl::MutexLock lock(&ready_mutex_);
    ready_ = ready;
    if (api_server_ == nullptr) return;
    api_server_->GetHealthCheckService()->SetServingStatus(
        v1::InferenceService::service_full_name(), ready_);
  }

  void KeepHouse() {
    while (!stop_.WaitForNotificationWithTimeout(kHousekeeping)) {
      inference_.CancelStalledStreams();
      const auto [running, queued] =
          loop_.Read([](const Core& core, absl::Time) {
            return std::pair(core.running(), core.queued());
          });
      shell_.metrics.SetRequests(running, queued);
      shell_.metrics.SetWorkers(loop_.Read(
          [](const Core& core, absl::Time now) { return core.Workers(now); }));
    }
  }

  v1::ServerConfig config_;
  const std::unique_ptr<Tokenizer> tokenizer_;
  Shell shell_;
  TaskPool pool_;
  grpc::ResourceQuota quota_;
  CoreLoop loop_;
  WorkerLinkService links_;
  InferenceService inference_;
  AdminService admin_;
  absl::Mutex ready_mutex_;
  bool ready_ ABSL_GUARDED_BY(ready_mutex_) = false;
  std::unique_ptr<grpc::Server> link_server_;
  std::unique_ptr<grpc::Server> admin_server_;
  std::unique_ptr<grpc::Server> api_server_;
  absl::Notification stop_;
  std::thread housekeeper_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Scheduler>> Scheduler::Start(
    v1::ServerConfig config) {
  auto tokenizer = Tokenizer::Load(config.model().path());
  if (!tokenizer.ok()) return tokenizer.status();
  auto process = std::make_unique<SchedulerProcess>(std::move(config),
                                                    *std::move(tokenizer));
  if (auto status = process->Listen(); !status.ok()) return status;
  return process;
}

}  // namespace invar::scheduler
