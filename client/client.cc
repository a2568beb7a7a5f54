#include "client/client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <chrono>
#include <random>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/status.h"

namespace invar {
namespace {

// A peer that vanished without a word is noticed after these two together.
constexpr int kKeepaliveMs = 30'000;
constexpr int kKeepaliveTimeoutMs = 10'000;
constexpr int kReconnectMs = 1'000;

grpc::ChannelArguments MakeChannelArguments(const ConnectOptions& options) {
  grpc::ChannelArguments arguments;
  // Identity only, in both directions: bit 0 of the set is "no compression".
  arguments.SetCompressionAlgorithm(GRPC_COMPRESS_NONE);
  arguments.SetInt(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1);
  arguments.SetMaxReceiveMessageSize(options.max_message_bytes);
  // A scheduler that restarts is back in a moment.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kReconnectMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  // An http_proxy variable is meant for the web, not for a server named by
  // its address; with it even 127.0.0.1 would be out of reach.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return arguments;
}

std::chrono::system_clock::time_point Deadline(absl::Duration timeout) {
  return absl::ToChronoTime(absl::Now() + timeout);
}

// The value of one key of the initial metadata; empty without it.
std::string MetadataValue(const grpc::ClientContext& context,
                          const std::string& key) {
  const auto& metadata = context.GetServerInitialMetadata();
  const auto it = metadata.find(key);
  if (it == metadata.end()) return "";
  return std::string(it->second.data(), it->second.size());
}

// What a callback call must keep alive until it is answered.
struct PendingAnswer {
  grpc::ClientContext context;
  v1::GenerateOnceRequest request;
  v1::GenerateOnceResponse response;
};

v1::Answer& AnswerAt(int index, v1::GenerateOnceResponse& whole) {
  while (whole.answers_size() <= index) whole.add_answers();
  return *whole.mutable_answers(index);
}

}  // namespace

void AddEvent(const v1::GenerateResponse& event,
              v1::GenerateOnceResponse& whole) {
  switch (event.event_case()) {
    case v1::GenerateResponse::kPromptLogprobs:
      whole.mutable_prompt_logprobs()->MergeFrom(
          event.prompt_logprobs().logprobs());
      break;
    case v1::GenerateResponse::kDelta: {
      const v1::TokenDelta& delta = event.delta();
      v1::Answer& answer = AnswerAt(delta.index(), whole);
      answer.mutable_text()->append(delta.text());
      answer.mutable_token_ids()->MergeFrom(delta.token_ids());
      answer.mutable_logprobs()->MergeFrom(delta.logprobs());
      answer.mutable_top_logprobs()->MergeFrom(delta.top_logprobs());
      break;
    }
    case v1::GenerateResponse::kFinal:
      for (const v1::Completion& completion : event.final().completions()) {
        *AnswerAt(completion.index(), whole).mutable_completion() = completion;
      }
      *whole.mutable_usage() = event.final().usage();
      break;
    case v1::GenerateResponse::EVENT_NOT_SET:
      break;
  }
}

absl::Status CheckAddress(absl::string_view address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == absl::string_view::npos || colon == 0 ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 1 ||
      port > 65535 ||
      (address.find(':') != colon && address[colon - 1] != ']')) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", address, "\" is not HOST:PORT, for example ",
                     kDefaultAddress, " or [::1]:8470"));
  }
  return absl::OkStatus();
}

absl::Status CheckAddresses(absl::string_view addresses) {
  for (const absl::string_view address : absl::StrSplit(addresses, ',')) {
    if (absl::Status valid = CheckAddress(address); !valid.ok()) return valid;
  }
  return absl::OkStatus();
}

namespace {

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address,
                                           const ConnectOptions& options) {
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(),
                                   MakeChannelArguments(options));
}

// False: nothing answers there within the timeout.
bool AwaitConnected(grpc::Channel* channel, absl::Duration timeout) {
  const auto deadline = Deadline(timeout);
  grpc_connectivity_state state = channel->GetState(/*try_to_connect=*/true);
  // TRANSIENT_FAILURE comes after every address of the host has refused: to
  // wait longer would only keep the news from the caller.
  while (state != GRPC_CHANNEL_READY &&
         state != GRPC_CHANNEL_TRANSIENT_FAILURE &&
         channel->WaitForStateChange(state, deadline)) {
    state = channel->GetState(/*try_to_connect=*/true);
  }
  return state == GRPC_CHANNEL_READY;
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectChannel(
    const std::string& address, const ConnectOptions& options) {
  const absl::Status valid = CheckAddress(address);
  if (!valid.ok()) return valid;
  std::shared_ptr<grpc::Channel> channel = MakeChannel(address, options);
  if (AwaitConnected(channel.get(), options.timeout)) return channel;
  return absl::UnavailableError(absl::StrCat("no server at ", address));
}

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(
    const std::string& addresses, const ConnectOptions& options) {
  const absl::Status valid = CheckAddresses(addresses);
  if (!valid.ok()) return valid;
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  for (const absl::string_view address : absl::StrSplit(addresses, ',')) {
    channels.push_back(MakeChannel(std::string(address), options));
  }
  for (size_t i = 0; i < channels.size(); ++i) {
    if (AwaitConnected(channels[i].get(), options.timeout)) {
      return std::unique_ptr<Client>(new Client(channels, i));
    }
  }
  return absl::UnavailableError(absl::StrCat("no server at ", addresses));
}

// Counts the callback calls under way. A call holds on to its channel, and a
// channel whose last holder is a thread of gRPC's own makes that thread wait
// for itself: so every call lets go first, and the client last.
class Client::PendingCalls {
 public:
  void Begin() {
    absl::MutexLock lock(&mutex_);
    ++count_;
  }
  void End() {
    absl::MutexLock lock(&mutex_);
    --count_;
  }
  void AwaitNone() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](int* count) { return *count == 0; }, &count_));
  }

 private:
  absl::Mutex mutex_;
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
};

Client::~Client() { pending_calls_->AwaitNone(); }

Client::Client(const std::vector<std::shared_ptr<grpc::Channel>>& channels,
               size_t preferred)
    : pending_calls_(std::make_shared<PendingCalls>()), preferred_(preferred) {
  for (const auto& channel : channels) {
    servers_.push_back({v1::InferenceService::NewStub(channel),
                        grpc::health::v1::Health::NewStub(channel)});
  }
}

void Client::Avoid(size_t failed) {
  preferred_.compare_exchange_strong(failed, (failed + 1) % servers_.size());
}

RetryPolicy Client::MakeRetryPolicy(const CallOptions& options,
                                    absl::Time deadline) const {
  RetryPolicy::Options retry;
  retry.servers = static_cast<int>(servers_.size());
  retry.patience = options.outage_patience;
  retry.deadline = deadline;
  retry.jitter_seed = std::random_device()();
  return RetryPolicy(retry);
}

grpc::Status Client::RunStream(size_t server, absl::Time deadline,
                               const OnEvent& on_event, ResumableStream* stream,
                               RetryPolicy* retry, GenerateMetadata* metadata,
                               bool* wanted) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  auto reader =
      servers_[server].inference->Generate(&context, stream->NextRequest());
  reader->WaitForInitialMetadata();
  metadata->request_id = MetadataValue(context, "invar-request-id");
  metadata->fingerprint = MetadataValue(context, "invar-fingerprint");
  if (!absl::SimpleAtoi(MetadataValue(context, "invar-seed"),
                        &metadata->seed)) {
    metadata->seed = 0;
  }
  stream->Begin(metadata->request_id, metadata->fingerprint);
  absl::Status differs;
  v1::GenerateResponse event;
  while (*wanted && differs.ok() && reader->Read(&event)) {
    auto news = stream->Take(std::move(event));
    if (!news.ok()) {
      differs = news.status();
    } else if (news->has_value()) {
      retry->OnNews();
      *wanted = on_event(**news);
    }
  }
  if (!*wanted || !differs.ok()) context.TryCancel();
  // What was already under way must be read before Finish.
  while (reader->Read(&event)) {
  }
  grpc::Status status = reader->Finish();
  return differs.ok() ? status : ToGrpcStatus(differs, "RESUME_DIFFERS");
}

grpc::Status Client::Generate(const v1::GenerateRequest& request,
                              const CallOptions& options,
                              const OnEvent& on_event,
                              GenerateMetadata* metadata) {
  GenerateMetadata unasked;
  if (metadata == nullptr) metadata = &unasked;
  const absl::Time deadline = absl::Now() + options.timeout;
  RetryPolicy retry = MakeRetryPolicy(options, deadline);
  ResumableStream stream(request);
  bool wanted = true;
  for (metadata->resumes = 0;; ++metadata->resumes) {
    const size_t server = preferred_;
    const grpc::Status status = RunStream(server, deadline, on_event, &stream,
                                          &retry, metadata, &wanted);
    if (status.ok() || !wanted) return status;
    if (stream.ended()) return grpc::Status::OK;  // Nothing is missing.
    const auto pause = retry.AfterFailure(status, absl::Now());
    if (!pause.has_value() || !stream.CanResume()) return status;
    Avoid(server);
    absl::SleepFor(*pause);
  }
}

grpc::Status Client::GenerateOnce(const v1::GenerateRequest& request,
                                  const CallOptions& options,
                                  v1::GenerateOnceResponse* response) {
  const absl::Time deadline = absl::Now() + options.timeout;
  RetryPolicy retry = MakeRetryPolicy(options, deadline);
  v1::GenerateOnceRequest wrapped;
  *wrapped.mutable_request() = request;
  while (true) {
    const size_t server = preferred_;
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(deadline));
    const grpc::Status status =
        servers_[server].inference->GenerateOnce(&context, wrapped, response);
    if (status.ok()) return status;
    const auto pause = retry.AfterFailure(status, absl::Now());
    if (!pause.has_value()) return status;
    Avoid(server);
    absl::SleepFor(*pause);
  }
}

std::function<void()> Client::GenerateOnceAsync(v1::GenerateRequest request,
                                                const CallOptions& options,
                                                OnAnswer on_answer) {
  auto pending = std::make_shared<PendingAnswer>();
  pending->context.set_deadline(Deadline(options.timeout));
  *pending->request.mutable_request() = std::move(request);
  pending_calls_->Begin();
  const size_t server = preferred_;
  servers_[server].inference->async()->GenerateOnce(
      &pending->context, &pending->request, &pending->response,
      [this, server, pending, on_answer = std::move(on_answer),
       calls = pending_calls_](grpc::Status status) mutable {
        if (status.error_code() == grpc::StatusCode::UNAVAILABLE) Avoid(server);
        on_answer(std::move(status), pending->response);
        pending.reset();
        calls->End();
      });
  return [pending] { pending->context.TryCancel(); };
}

template <typename Call>
grpc::Status Client::CallAny(const CallOptions& options, const Call& call) {
  const auto deadline = Deadline(options.timeout);
  grpc::Status status;
  for (size_t tries = 0; tries < servers_.size(); ++tries) {
    const size_t server = preferred_;
    grpc::ClientContext context;
    context.set_deadline(deadline);
    status = call(servers_[server], &context);
    if (status.error_code() != grpc::StatusCode::UNAVAILABLE) break;
    Avoid(server);
  }
  return status;
}

grpc::Status Client::Tokenize(const v1::TokenizeRequest& request,
                              const CallOptions& options,
                              v1::TokenizeResponse* response) {
  return CallAny(options, [&](Server& server, grpc::ClientContext* context) {
    return server.inference->Tokenize(context, request, response);
  });
}

grpc::Status Client::Detokenize(const v1::DetokenizeRequest& request,
                                const CallOptions& options,
                                v1::DetokenizeResponse* response) {
  return CallAny(options, [&](Server& server, grpc::ClientContext* context) {
    return server.inference->Detokenize(context, request, response);
  });
}

grpc::Status Client::GetServerInfo(const CallOptions& options,
                                   v1::GetServerInfoResponse* response) {
  return CallAny(options, [&](Server& server, grpc::ClientContext* context) {
    return server.inference->GetServerInfo(context, {}, response);
  });
}

grpc::Status Client::CheckHealth(
    const std::string& service, const CallOptions& options,
    grpc::health::v1::HealthCheckResponse::ServingStatus* serving) {
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status =
      CallAny(options, [&](Server& server, grpc::ClientContext* context) {
        return server.health->Check(context, request, &response);
      });
  *serving = response.status();
  return status;
}

absl::StatusOr<std::unique_ptr<AdminClient>> AdminClient::Connect(
    const std::string& address, const ConnectOptions& options) {
  auto channel = ConnectChannel(address, options);
  if (!channel.ok()) return channel.status();
  return std::make_unique<AdminClient>(*std::move(channel));
}

AdminClient::AdminClient(std::shared_ptr<grpc::Channel> channel)
    : admin_(v1::AdminService::NewStub(channel)) {}

grpc::Status AdminClient::ListWorkers(const CallOptions& options,
                                      v1::ListWorkersResponse* response) {
  grpc::ClientContext context;
  context.set_deadline(Deadline(options.timeout));
  return admin_->ListWorkers(&context, {}, response);
}

grpc::Status AdminClient::Drain(const std::string& worker_id,
                                const CallOptions& options) {
  grpc::ClientContext context;
  context.set_deadline(Deadline(options.timeout));
  v1::DrainRequest request;
  request.set_worker_id(worker_id);
  v1::DrainResponse response;
  return admin_->Drain(&context, request, &response);
}

grpc::Status AdminClient::Resume(const std::string& worker_id,
                                 const CallOptions& options) {
  grpc::ClientContext context;
  context.set_deadline(Deadline(options.timeout));
  v1::ResumeRequest request;
  request.set_worker_id(worker_id);
  v1::ResumeResponse response;
  return admin_->Resume(&context, request, &response);
}

}  // namespace invar
