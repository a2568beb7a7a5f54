#include "client/bench/token_server.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/bench/random.h"
#include "common/digest.h"
#include "invar/v1/inference.grpc.pb.h"

namespace invar::bench {
namespace {

constexpr int32_t kVocabulary = 1000;
constexpr int32_t kContext = 8192;

std::vector<int32_t> MakeTokens(const v1::GenerateRequest& request) {
  uint64_t seed = request.sampling().seed();
  for (const int32_t id : request.token_ids().ids()) {
    seed = Random(seed, static_cast<uint64_t>(id)).Next();
  }
  Random random(seed, 0);
  std::vector<int32_t> tokens(request.stopping().max_tokens());
  for (int32_t& token : tokens) token = random.Between(0, kVocabulary - 1);
  return tokens;
}

// Writes an answer, then itself away.
class AnswerStream final
    : public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  AnswerStream(std::vector<int32_t> tokens, int32_t tokens_per_event,
               v1::GenerateFinal final)
      : tokens_(std::move(tokens)),
        tokens_per_event_(tokens_per_event),
        final_(std::move(final)) {
    Write();
  }

 private:
  void Write() {
    if (next_ >= tokens_.size()) {
      *event_.mutable_final() = std::move(final_);
      StartWriteAndFinish(&event_, grpc::WriteOptions(), grpc::Status::OK);
      return;
    }
    v1::TokenDelta& delta = *event_.mutable_delta();
    delta.Clear();
    const size_t end = std::min(tokens_.size(), next_ + tokens_per_event_);
    for (; next_ < end; ++next_) delta.add_token_ids(tokens_[next_]);
    StartWrite(&event_);
  }

  void OnWriteDone(bool ok) override {
    if (ok) {
      Write();
    } else if (!event_.has_final()) {
      Finish(grpc::Status::CANCELLED);
    }
  }
  // gRPC's own idiom: this is the last that is called.
  void OnDone() override { delete this; }

  const std::vector<int32_t> tokens_;
  const int32_t tokens_per_event_;
  v1::GenerateFinal final_;
  size_t next_ = 0;
  v1::GenerateResponse event_;
};

class Refusal final : public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  explicit Refusal(const grpc::Status& status) { Finish(status); }

 private:
  void OnDone() override { delete this; }
};

}  // namespace

class TokenServer::Service final
    : public v1::InferenceService::CallbackService {
 public:
  explicit Service(TokenServerOptions options) : options_(std::move(options)) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context,
      const v1::GenerateRequest* request) override {
    const int64_t number = requests_++;
    if (options_.refuse) {
      const grpc::Status status = options_.refuse(*request, number);
      if (!status.ok()) return new Refusal(status);
    }
    std::vector<int32_t> tokens = options_.answer
                                      ? options_.answer(*request, number)
                                      : MakeTokens(*request);
    v1::GenerateFinal final;
    final.mutable_usage()->set_prompt_tokens(request->token_ids().ids_size());
    final.mutable_usage()->set_cached_tokens(1);
    final.mutable_usage()->set_output_tokens(tokens.size());
    v1::Receipt& receipt = *final.add_completions()->mutable_receipt();
    receipt.set_fingerprint("f00d");
    receipt.set_output_digest(options_.output_digest.empty()
                                  ? TokenDigest(tokens)
                                  : options_.output_digest);
    return new AnswerStream(std::move(tokens), options_.tokens_per_event,
                            std::move(final));
  }

  grpc::ServerUnaryReactor* GetServerInfo(
      grpc::CallbackServerContext* context,
      const v1::GetServerInfoRequest* request,
      v1::GetServerInfoResponse* response) override {
    response->set_model("made-up");
    response->set_version("0");
    response->set_fingerprint("f00d");
    response->set_vocab_size(kVocabulary);
    response->set_max_context_tokens(kContext);
    v1::Numerics& numerics = *response->add_pools()->mutable_numerics();
    numerics.set_architecture("made-up");
    numerics.mutable_plan()->add_entries()->set_name("mode");
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  const TokenServerOptions options_;
  std::atomic<int64_t> requests_ = 0;
};

TokenServer::TokenServer(TokenServerOptions options)
    : service_(std::make_unique<Service>(std::move(options))) {
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                           &port);
  builder.RegisterService(service_.get());
  server_ = builder.BuildAndStart();
  address_ = absl::StrCat("127.0.0.1:", port);
}

TokenServer::~TokenServer() { server_->Shutdown(); }

}  // namespace invar::bench
