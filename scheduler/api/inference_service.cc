#include "scheduler/api/inference_service.h"

#include <spdlog/spdlog.h>

#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/seed.h"
#include "common/status.h"
#include "common/trace.h"
#include "common/version.h"
#include "scheduler/api/wire.h"

namespace invar::scheduler {
namespace {

// 128 random bits: unique without asking anyone.
std::string MakeRequestId() {
  std::random_device random;
  return absl::StrFormat("%08x%08x%08x%08x", random(), random(), random(),
                         random());
}

// Reads a request, runs `work(request, response)` on the pool, and ends the
// call with its status.
template <typename Request, typename Response, typename Work>
grpc::ServerUnaryReactor* RunOnPool(grpc::CallbackServerContext* context,
                                    TaskPool& pool,
                                    const grpc::ByteBuffer& request_bytes,
                                    grpc::ByteBuffer* response_bytes,
                                    Work work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  Request request;
  const grpc::Status parsed = ParseRequest(request_bytes, &request);
  pool.Submit([=, request = std::move(request), work = std::move(work)] {
    Response response;
    const grpc::Status status = parsed.ok() ? work(request, &response) : parsed;
    if (status.ok()) {
      *response_bytes = SerializeResponse(response);
    } else {
      spdlog::warn("refused: {}", status.error_message());
    }
    reactor->Finish(status);
  });
  return reactor;
}

// Of the call's metadata; empty without one.
std::string TraceparentOf(const grpc::CallbackServerContext& context) {
  const auto found = context.client_metadata().find(kTraceparentKey);
  if (found == context.client_metadata().end()) return "";
  return ReadTraceparent({found->second.data(), found->second.size()});
}

}  // namespace

InferenceService::InferenceService(Parts parts)
    : parts_(std::move(parts)),
      reader_(parts_.tokenizer, parts_.config.limits(),
              parts_.config.model().name()) {}

Abandon InferenceService::AbandonOf(RequestNumber number) {
  return [this, number] { parts_.loop.Post(RequestAbandoned{number}); };
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes) {
  const RequestNumber number = ++last_number_;
  auto call = std::make_shared<StreamedCall>(
      context, parts_.config.limits().stream_buffer_bytes());
  {
    absl::MutexLock lock(&mutex_);
    streams_.push_back(call);
  }
  StreamedCall* reactor = call->Start(AbandonOf(number));
  auto request = std::make_shared<v1::GenerateRequest>();
  const grpc::Status parsed = ParseRequest(*bytes, request.get());
  Begin(context, parsed, std::move(request), number, std::move(call));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::GenerateOnce(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
    grpc::ByteBuffer* response) {
  const RequestNumber number = ++last_number_;
  auto call = std::make_shared<WholeCall>(context, response);
  WholeCall* reactor = call->Start(AbandonOf(number));
  auto whole = std::make_shared<v1::GenerateOnceRequest>();
  const grpc::Status parsed = ParseRequest(*bytes, whole.get());
  const v1::GenerateRequest* request = &whole->request();
  Begin(context, parsed, {std::move(whole), request}, number, std::move(call));
  return reactor;
}

void InferenceService::Begin(grpc::CallbackServerContext* context,
                             const grpc::Status& parsed,
                             std::shared_ptr<const v1::GenerateRequest> request,
                             RequestNumber number,
                             std::shared_ptr<AnswerSink> sink) {
  auto spec = std::make_shared<RequestSpec>();
  spec->number = number;
  spec->traceparent = TraceparentOf(*context);
  spec->request_id =
      request->request_id().empty() ? MakeRequestId() : request->request_id();
  spec->seed = request->sampling().has_seed()
                   ? request->sampling().seed()
                   : SeedFromRequestId(spec->request_id);
  if (context->deadline() != std::chrono::system_clock::time_point::max()) {
    spec->deadline = absl::FromChrono(context->deadline());
  }
  grpc::Status status = parsed;
  if (status.ok()) status = RequestReader::CheckRequestId(spec->request_id);
  if (!status.ok()) {
    spec->request_id = "(unnamed)";  // What it was is not fit for a log.
    Refuse(*spec, *sink, status);
    return;
  }
  context->AddInitialMetadata("invar-request-id", spec->request_id);
  context->AddInitialMetadata("invar-seed", absl::StrCat(spec->seed));
  parts_.pool.Submit(
      [this, request = std::move(request), spec, sink = std::move(sink)] {
        ReadAndSubmit(*request, spec, sink);
      });
}

void InferenceService::Refuse(const RequestSpec& spec, AnswerSink& sink,
                              const grpc::Status& status) {
  spdlog::warn("request {} refused: {}{}", spec.request_id,
               status.error_message(), TraceNote(spec.traceparent));
  sink.OnEnd(status);
}

void InferenceService::ReadAndSubmit(const v1::GenerateRequest& request,
                                     std::shared_ptr<RequestSpec> spec,
                                     std::shared_ptr<AnswerSink> sink) {
  if (sink->cancelled()) {
    sink->OnEnd(grpc::Status::CANCELLED);
    return;
  }
  if (auto status = reader_.Read(request, spec.get()); !status.ok()) {
    Refuse(*spec, *sink, status);
    return;
  }
  auto stops = StopMatcher::Create({spec->sampling.stop_strings().begin(),
                                    spec->sampling.stop_strings().end()},
                                   request.stopping().include_stop_text());
  if (!stops.ok()) {
    Refuse(*spec, *sink,
           BadField("stopping.stop_strings",
                    absl::string_view(stops.status().message())));
    return;
  }
  Sample::TextOptions options;
  options.include_stop_text = request.stopping().include_stop_text();
  options.skip_special_tokens = !request.output().has_skip_special_tokens() ||
                                request.output().skip_special_tokens();
  std::vector<Sample> samples;
  for (int32_t index = 0; index < spec->answers; ++index) {
    samples.emplace_back(spec, index, parts_.tokenizer, *stops, options);
  }
  parts_.answers.Insert(
      spec->number, std::make_unique<Answer>(spec, parts_.config.model().name(),
                                             std::move(samples), sink));
  const RequestNumber number = spec->number;
  parts_.loop.Post(RequestArrived{std::move(spec)});
  // A cancel between the look above and here was posted too early.
  if (sink->cancelled()) parts_.loop.Post(RequestAbandoned{number});
}

void InferenceService::CancelStalledStreams() {
  const absl::Time now = absl::Now();
  const absl::Duration limit =
      absl::Milliseconds(parts_.config.limits().client_stall_ms());
  absl::MutexLock lock(&mutex_);
  streams_.remove_if([&](const std::weak_ptr<StreamedCall>& weak) {
    const std::shared_ptr<StreamedCall> call = weak.lock();
    if (call != nullptr) call->CancelIfStalled(now, limit);
    return call == nullptr;
  });
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
    grpc::ByteBuffer* response_bytes) {
  return RunOnPool<v1::TokenizeRequest, v1::TokenizeResponse>(
      context, parts_.pool, *bytes, response_bytes,
      [this](const v1::TokenizeRequest& request,
             v1::TokenizeResponse* response) -> grpc::Status {
        std::vector<int32_t> ids;
        grpc::Status status = reader_.CheckModel(request.model());
        if (!status.ok()) return status;
        switch (request.input_case()) {
          case v1::TokenizeRequest::kText:
            status = reader_.ReadText(request.text(), &ids);
            break;
          case v1::TokenizeRequest::kChat:
            status = reader_.ReadChat(request.chat(), &ids);
            break;
          case v1::TokenizeRequest::INPUT_NOT_SET:
            return BadField("input", "is not set; set text or chat");
        }
        response->mutable_token_ids()->Assign(ids.begin(), ids.end());
        return status;
      });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
    grpc::ByteBuffer* response_bytes) {
  return RunOnPool<v1::DetokenizeRequest, v1::DetokenizeResponse>(
      context, parts_.pool, *bytes, response_bytes,
      [this](const v1::DetokenizeRequest& request,
             v1::DetokenizeResponse* response) -> grpc::Status {
        grpc::Status status = reader_.CheckModel(request.model());
        if (status.ok()) {
          status = reader_.CheckIds("token_ids", request.token_ids());
        }
        if (!status.ok()) return status;
        const bool skip =
            !request.has_skip_special_tokens() || request.skip_special_tokens();
        auto text = parts_.tokenizer.Decode(
            {request.token_ids().data(),
             static_cast<size_t>(request.token_ids_size())},
            skip);
        if (!text.ok()) return ToGrpcStatus(text.status(), "TOKENIZER");
        response->set_text(*std::move(text));
        return grpc::Status::OK;
      });
}

grpc::ServerUnaryReactor* InferenceService::GetServerInfo(
    grpc::CallbackServerContext* context,
    const v1::GetServerInfoRequest* request,
    v1::GetServerInfoResponse* response) {
  response->set_model(parts_.config.model().name());
  response->set_version(kVersion);
  response->set_vocab_size(parts_.tokenizer.vocab_size());
  response->set_config_digest(parts_.config_digest);
  parts_.loop.Read([response](const Core& core, absl::Time) {
    response->set_max_context_tokens(core.MaxContextTokens());
    response->set_fingerprint(core.PrimaryFingerprint());
    for (v1::Pool& pool : core.Pools()) {
      *response->add_pools() = std::move(pool);
    }
  });
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace invar::scheduler
