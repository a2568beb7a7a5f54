#include "client/client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <chrono>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

namespace invar {
namespace {

// A peer that vanished without a word is noticed after these two together.
constexpr int kKeepaliveMs = 30'000;
constexpr int kKeepaliveTimeoutMs = 10'000;

grpc::ChannelArguments MakeChannelArguments(const ConnectOptions& options) {
  grpc::ChannelArguments arguments;
  // Identity only, in both directions: bit 0 of the set is "no compression".
  arguments.SetCompressionAlgorithm(GRPC_COMPRESS_NONE);
  arguments.SetInt(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1);
  arguments.SetMaxReceiveMessageSize(options.max_message_bytes);
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

absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectChannel(
    const std::string& address, const ConnectOptions& options) {
  const absl::Status valid = CheckAddress(address);
  if (!valid.ok()) return valid;
  std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(),
                                MakeChannelArguments(options));
  const auto deadline = Deadline(options.timeout);
  grpc_connectivity_state state = channel->GetState(/*try_to_connect=*/true);
  // TRANSIENT_FAILURE comes after every address of the host has refused: to
  // wait longer would only keep the news from the caller.
  while (state != GRPC_CHANNEL_READY &&
         state != GRPC_CHANNEL_TRANSIENT_FAILURE &&
         channel->WaitForStateChange(state, deadline)) {
    state = channel->GetState(/*try_to_connect=*/true);
  }
  if (state == GRPC_CHANNEL_READY) return channel;
  return absl::UnavailableError(absl::StrCat("no server at ", address));
}

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(
    const std::string& address, const ConnectOptions& options) {
  auto channel = ConnectChannel(address, options);
  if (!channel.ok()) return channel.status();
  return std::make_unique<Client>(*std::move(channel));
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

Client::Client(std::shared_ptr<grpc::Channel> channel)
    : pending_calls_(std::make_shared<PendingCalls>()),
      inference_(v1::InferenceService::NewStub(channel)),
      health_(grpc::health::v1::Health::NewStub(channel)) {}

grpc::Status Client::Generate(const v1::GenerateRequest& request,
                              const CallOptions& options,
                              const OnEvent& on_event,
                              GenerateMetadata* metadata) {
  grpc::ClientContext context;
  context.set_deadline(Deadline(options.timeout));
  auto reader = inference_->Generate(&context, request);
  reader->WaitForInitialMetadata();
  if (metadata != nullptr) {
    metadata->request_id = MetadataValue(context, "invar-request-id");
    if (!absl::SimpleAtoi(MetadataValue(context, "invar-seed"),
                          &metadata->seed)) {
      metadata->seed = 0;
    }
  }
  bool wanted = true;
  v1::GenerateResponse event;
  while (wanted && reader->Read(&event)) {
    wanted = on_event(event);
    if (!wanted) context.TryCancel();
  }
  // What was already under way must be read before Finish.
  while (!wanted && reader->Read(&event)) {
  }
  return reader->Finish();
}

grpc::Status Client::GenerateOnce(const v1::GenerateRequest& request,
                                  const CallOptions& options,
                                  v1::GenerateOnceResponse* response) {
  grpc::ClientContext context;
  context.set_deadline(Deadline(options.timeout));
  v1::GenerateOnceRequest wrapped;
  *wrapped.mutable_request() = request;
  return inference_->GenerateOnce(&context, wrapped, response);
}

std::function<void()> Client::GenerateOnceAsync(v1::GenerateRequest request,
                                                const CallOptions& options,
                                                OnAnswer on_answer) {
  auto pending = std::make_shared<PendingAnswer>();
  pending->context.set_deadline(Deadline(options.timeout));
  *pending->request.mutable_request() = std::move(request);
  pending_calls_->Begin();
  inference_->async()->GenerateOnce(
      &pending->context, &pending->request, &pending->response,
      [pending, on_answer = std::move(on_answer),
       calls = pending_calls_](grpc::Status status) mutable {
        on_answer(std::move(status), pending->response);
        pending.reset();
        calls->End();
      });
  return [pending] { pending->context.TryCancel(); };
}

grpc::Status Client::Tokenize(const v1::TokenizeRequest& request,
                              const CallOptions& options,
                              v1::TokenizeResponse* response) {
  grpc::ClientContext context;
  context.set_deadline(Deadline(options.timeout));
  return inference_->Tokenize(&context, request, response);
}

grpc::Status Client::Detokenize(const v1::DetokenizeRequest& request,
                                const CallOptions& options,
                                v1::DetokenizeResponse* response) {
  grpc::ClientContext context;
  context.set_deadline(Deadline(options.timeout));
  return inference_->Detokenize(&context, request, response);
}

grpc::Status Client::GetServerInfo(const CallOptions& options,
                                   v1::GetServerInfoResponse* response) {
  grpc::ClientContext context;
  context.set_deadline(Deadline(options.timeout));
  return inference_->GetServerInfo(&context, {}, response);
}

grpc::Status Client::CheckHealth(
    const std::string& service, const CallOptions& options,
    grpc::health::v1::HealthCheckResponse::ServingStatus* serving) {
  grpc::ClientContext context;
  context.set_deadline(Deadline(options.timeout));
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status = health_->Check(&context, request, &response);
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
