#include "client/fake_server.h"

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/status.h"

namespace invar {
namespace {

constexpr uint64_t kSeed = 18446744073709551615u;  // Beyond a double's reach.

std::string RequestId(const v1::GenerateRequest& request) {
  return request.request_id().empty() ? "made-up" : request.request_id();
}

}  // namespace

std::string PromptOf(const v1::GenerateRequest& request) {
  if (request.has_text()) return request.text();
  if (request.chat().messages().empty()) return "";
  return request.chat().messages().rbegin()->content();
}

class FakeServer::Inference final : public v1::InferenceService::Service {
 public:
  explicit Inference(FakeServer* server) : server_(*server) {}

  grpc::Status Generate(
      grpc::ServerContext* context, const v1::GenerateRequest* request,
      grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    const int seen = static_cast<int>(server_.requests().size());
    const grpc::Status refused = server_.Receive(*request);
    if (!refused.ok()) return refused;
    context->AddInitialMetadata("invar-request-id", RequestId(*request));
    context->AddInitialMetadata("invar-fingerprint",
                                server_.behaviour_.fingerprint);
    if (server_.behaviour_.respond) {
      const auto whole = server_.behaviour_.respond(*request, true);
      const auto& receipt = whole.answers(0).completion().receipt();
      context->AddInitialMetadata("invar-seed", absl::StrCat(receipt.seed()));
      WriteEvents(whole, writer);
      return grpc::Status::OK;
    }
    context->AddInitialMetadata("invar-seed", absl::StrCat(kSeed));
    std::optional<int> left;
    if (server_.behaviour_.breaks) {
      left = server_.behaviour_.breaks(*request, seen);
    }
    for (const v1::GenerateResponse& event : MakeEvents(*request)) {
      if (left.has_value() && (*left)-- == 0) {
        return grpc::Status(grpc::StatusCode::UNAVAILABLE, "broken");
      }
      if (!writer->Write(event)) break;
    }
    return grpc::Status::OK;
  }

  grpc::Status GenerateOnce(grpc::ServerContext* context,
                            const v1::GenerateOnceRequest* request,
                            v1::GenerateOnceResponse* response) override {
    const grpc::Status refused = server_.Receive(request->request());
    if (!refused.ok()) return refused;
    if (server_.behaviour_.respond) {
      *response = server_.behaviour_.respond(request->request(), false);
      return grpc::Status::OK;
    }
    *response->add_answers() = server_.MakeAnswer(request->request(), 0);
    response->set_request_id(RequestId(request->request()));
    return grpc::Status::OK;
  }

  grpc::Status Tokenize(grpc::ServerContext* context,
                        const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    for (const char c : request->text()) response->add_token_ids(c);
    return grpc::Status::OK;
  }

  grpc::Status Detokenize(grpc::ServerContext* context,
                          const v1::DetokenizeRequest* request,
                          v1::DetokenizeResponse* response) override {
    for (const int32_t id : request->token_ids()) {
      response->mutable_text()->push_back(static_cast<char>(id));
    }
    return grpc::Status::OK;
  }

  grpc::Status GetServerInfo(grpc::ServerContext* context,
                             const v1::GetServerInfoRequest* request,
                             v1::GetServerInfoResponse* response) override {
    *response = server_.behaviour_.info;
    response->set_fingerprint(server_.behaviour_.fingerprint);
    return grpc::Status::OK;
  }

 private:
  // A whole answer as a stream: a delta a token, the text with the last.
  static void WriteEvents(const v1::GenerateOnceResponse& whole,
                          grpc::ServerWriter<v1::GenerateResponse>* writer) {
    v1::GenerateResponse event;
    if (whole.prompt_logprobs_size() > 0) {
      *event.mutable_prompt_logprobs()->mutable_logprobs() =
          whole.prompt_logprobs();
      writer->Write(event);
    }
    v1::GenerateResponse last;
    for (const v1::Answer& answer : whole.answers()) {
      *last.mutable_final()->add_completions() = answer.completion();
      for (int i = 0; i < answer.token_ids_size(); ++i) {
        v1::TokenDelta& delta = *event.mutable_delta();
        delta.Clear();
        delta.set_index(answer.completion().index());
        delta.add_token_ids(answer.token_ids(i));
        if (i < answer.logprobs_size()) delta.add_logprobs(answer.logprobs(i));
        if (i < answer.top_logprobs_size()) {
          *delta.add_top_logprobs() = answer.top_logprobs(i);
        }
        if (i + 1 == answer.token_ids_size()) delta.set_text(answer.text());
        writer->Write(event);
      }
    }
    *last.mutable_final()->mutable_usage() = whole.usage();
    writer->Write(last);
  }

  std::vector<v1::GenerateResponse> MakeEvents(
      const v1::GenerateRequest& request) const {
    std::vector<v1::GenerateResponse> events;
    // Two pages, as a long prompt would have.
    for (int i = 0; request.output().prompt_logprobs() && i < 2; ++i) {
      auto* page = events.emplace_back().mutable_prompt_logprobs();
      page->set_position(1 + i);
      page->add_logprobs(i == 0 ? -0.1f : -1.0f / 3);
    }
    v1::GenerateResponse last;
    const int n = request.sampling().has_n() ? request.sampling().n() : 1;
    for (int index = 0; index < n; ++index) {
      const v1::Answer answer = server_.MakeAnswer(request, index);
      AddDeltas(request, answer, index, &events);
      *last.mutable_final()->add_completions() = answer.completion();
    }
    last.mutable_final()->mutable_usage()->set_prompt_tokens(3);
    events.push_back(last);
    return events;
  }

  // A delta a token that the client does not have, then one with the text
  // that was held back: the answer's last character.
  static void AddDeltas(const v1::GenerateRequest& request,
                        const v1::Answer& answer, int index,
                        std::vector<v1::GenerateResponse>* events) {
    const int tokens = answer.token_ids_size();
    for (int i = request.resume().token_ids_size(); i <= tokens; ++i) {
      v1::TokenDelta& delta = *events->emplace_back().mutable_delta();
      delta.set_index(index);
      delta.set_position(3 + i);
      if (i < tokens) delta.add_token_ids(answer.token_ids(i));
      if (i + 1 != tokens) {
        delta.set_text(answer.text().substr(std::min(i, tokens - 1), 1));
      }
      if (request.output().logprobs() && i < tokens) {
        delta.add_logprobs(-0.25f);
      }
    }
  }

  FakeServer& server_;
};

class FakeServer::Admin final : public v1::AdminService::Service {
 public:
  explicit Admin(FakeServer* server) : server_(*server) {}

  grpc::Status ListWorkers(grpc::ServerContext* context,
                           const v1::ListWorkersRequest* request,
                           v1::ListWorkersResponse* response) override {
    *response = server_.behaviour_.workers;
    return grpc::Status::OK;
  }

  grpc::Status Drain(grpc::ServerContext* context,
                     const v1::DrainRequest* request,
                     v1::DrainResponse* response) override {
    return Note("drain", request->worker_id());
  }

  grpc::Status Resume(grpc::ServerContext* context,
                      const v1::ResumeRequest* request,
                      v1::ResumeResponse* response) override {
    return Note("resume", request->worker_id());
  }

 private:
  grpc::Status Note(const std::string& verb, const std::string& worker_id) {
    absl::MutexLock lock(&server_.mutex_);
    server_.admin_calls_.push_back(absl::StrCat(verb, " ", worker_id));
    for (const v1::WorkerInfo& worker : server_.behaviour_.workers.workers()) {
      if (worker.worker_id() == worker_id) return grpc::Status::OK;
    }
    return Error(absl::StatusCode::kNotFound, "NO_SUCH_WORKER",
                 absl::StrCat("no worker is named ", worker_id))
        .Field("worker_id", "names no worker");
  }

  FakeServer& server_;
};

class FakeServer::Health final : public grpc::health::v1::Health::Service {
 public:
  explicit Health(bool ready) : ready_(ready) {}

  grpc::Status Check(grpc::ServerContext* context,
                     const grpc::health::v1::HealthCheckRequest* request,
                     grpc::health::v1::HealthCheckResponse* response) override {
    using Response = grpc::health::v1::HealthCheckResponse;
    response->set_status(request->service().empty() || ready_
                             ? Response::SERVING
                             : Response::NOT_SERVING);
    return grpc::Status::OK;
  }

 private:
  const bool ready_;
};

FakeServer::FakeServer(FakeBehaviour behaviour)
    : behaviour_(std::move(behaviour)),
      inference_(std::make_unique<Inference>(this)),
      admin_(std::make_unique<Admin>(this)),
      health_(std::make_unique<Health>(behaviour_.ready)) {
  // Not the default health service of gRPC, whose states a test cannot set
  // before the server runs.
  grpc::EnableDefaultHealthCheckService(false);
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                           &port_);
  builder.RegisterService(inference_.get());
  builder.RegisterService(admin_.get());
  builder.RegisterService(health_.get());
  server_ = builder.BuildAndStart();
}

FakeServer::~FakeServer() { server_->Shutdown(); }

std::string FakeServer::address() const {
  return absl::StrCat("127.0.0.1:", port_);
}

std::vector<v1::GenerateRequest> FakeServer::requests() const {
  absl::MutexLock lock(&mutex_);
  return requests_;
}

std::vector<std::string> FakeServer::admin_calls() const {
  absl::MutexLock lock(&mutex_);
  return admin_calls_;
}

grpc::Status FakeServer::Receive(const v1::GenerateRequest& request) {
  int seen = 0;
  {
    absl::MutexLock lock(&mutex_);
    seen = static_cast<int>(requests_.size());
    requests_.push_back(request);
  }
  return behaviour_.refuse ? behaviour_.refuse(request, seen)
                           : grpc::Status::OK;
}

v1::Answer FakeServer::MakeAnswer(const v1::GenerateRequest& request,
                                  int index) const {
  v1::Answer answer;
  answer.set_text(behaviour_.answer
                      ? behaviour_.answer(request)
                      : absl::StrCat("echo: ", PromptOf(request)));
  for (const char c : answer.text()) {
    answer.add_token_ids(static_cast<unsigned char>(c));
  }
  v1::Completion& completion = *answer.mutable_completion();
  completion.set_index(index);
  completion.mutable_finish()->set_reason(v1::Finish::STOP);
  completion.mutable_finish()->set_stop_token_id(1);
  v1::Receipt& receipt = *completion.mutable_receipt();
  receipt.set_fingerprint(behaviour_.fingerprint);
  receipt.set_request_id(RequestId(request));
  receipt.set_seed(kSeed);
  receipt.mutable_sampling()->set_top_p(0.1f);
  (*receipt.mutable_sampling()->mutable_logit_bias())[7] = -100;
  return answer;
}

}  // namespace invar
