// A server for the client's tests: real gRPC on a port of its own, and answers
// that a test makes up.
#ifndef INVAR_CLIENT_FAKE_SERVER_H_
#define INVAR_CLIENT_FAKE_SERVER_H_

#include <grpcpp/server.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "client/client.h"

namespace invar {

// What the server does. The functions may be called from several threads.
struct FakeBehaviour {
  // The answer's text; its token ids are the text's bytes. Default: "echo: "
  // and the prompt.
  std::function<std::string(const v1::GenerateRequest&)> answer = {};
  // Everything that is answered, in place of that; `streamed`: by Generate.
  std::function<v1::GenerateOnceResponse(const v1::GenerateRequest&,
                                         bool streamed)>
      respond = {};
  // Called before each answer with the requests seen so far, this one
  // excluded; other than OK is sent in place of the answer.
  std::function<grpc::Status(const v1::GenerateRequest&, int)> refuse = {};
  // Called for each streamed answer like refuse: events after which the stream
  // breaks; none: it does not.
  std::function<std::optional<int>(const v1::GenerateRequest&, int)> breaks =
      {};
  std::string fingerprint = "f00d";
  // What GetServerInfo says beyond the fingerprint.
  v1::GetServerInfoResponse info = {};
  bool ready = true;
  v1::ListWorkersResponse workers = {};
};

// The text of a request's prompt; the last message of a chat.
std::string PromptOf(const v1::GenerateRequest& request);

// Every service on one address. Stops when destroyed.
class FakeServer {
 public:
  explicit FakeServer(FakeBehaviour behaviour);
  ~FakeServer();

  std::string address() const;
  // In order of arrival.
  std::vector<v1::GenerateRequest> requests() const;
  // "drain ID" or "resume ID", in order.
  std::vector<std::string> admin_calls() const;

 private:
  class Inference;
  class Admin;
  class Health;

  // Counts a request, then refuses it or not.
  grpc::Status Receive(const v1::GenerateRequest& request);
  v1::Answer MakeAnswer(const v1::GenerateRequest& request, int index) const;

  const FakeBehaviour behaviour_;
  mutable absl::Mutex mutex_;
  std::vector<v1::GenerateRequest> requests_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> admin_calls_ ABSL_GUARDED_BY(mutex_);
  int port_ = 0;
  std::unique_ptr<Inference> inference_;
  std::unique_ptr<Admin> admin_;
  std::unique_ptr<Health> health_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace invar

#endif  // INVAR_CLIENT_FAKE_SERVER_H_
