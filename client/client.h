// The C++ client of Invar: a connection, and one method a call.
//
//   absl::StatusOr<std::unique_ptr<Client>> client =
//       Client::Connect("127.0.0.1:8470");
//
// With several addresses ("a:8470,b:8470", schedulers of one config) a call
// goes to the first that answers. A generation whose stream breaks is taken up
// again by itself, there or elsewhere, also after a restart of the scheduler:
// its caller sees one unbroken stream, the same that it would have been.
//
//   v1::GenerateRequest request;
//   request.set_text("Once upon a time");
//   v1::GenerateOnceResponse response;
//   grpc::Status status = (*client)->GenerateOnce(request, {}, &response);
//
// Calls answer with grpc::Status, not absl::Status, because an error's details
// (common/status.h: reason, field, when to retry) ride on it.
#ifndef INVAR_CLIENT_CLIENT_H_
#define INVAR_CLIENT_CLIENT_H_

#include <grpcpp/channel.h>
#include <grpcpp/support/status.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/resume.h"
#include "client/retry.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "invar/v1/admin.grpc.pb.h"
#include "invar/v1/inference.grpc.pb.h"

namespace invar {

inline constexpr char kDefaultAddress[] = "127.0.0.1:8470";
inline constexpr char kDefaultAdminAddress[] = "127.0.0.1:8472";
// The service whose health is readiness; the empty name's is liveness.
inline constexpr char kInferenceServiceName[] = "invar.v1.InferenceService";

struct ConnectOptions {
  // For resolving, dialling and the HTTP/2 handshake together.
  absl::Duration timeout = absl::Seconds(5);
  // Bytes of one response.
  int max_message_bytes = 64 << 20;
};

struct CallOptions {
  // For the whole call. The server sees it, admits by it and stops by it.
  absl::Duration timeout = absl::Minutes(10);
  // For how long a generation that has begun is tried again while nothing new
  // comes of it. 0: a broken stream is the caller's business.
  absl::Duration outage_patience = absl::Minutes(1);
};

// What the initial metadata of Generate tells before the first token; both are
// sent also when the server made them up.
struct GenerateMetadata {
  std::string request_id;
  uint64_t seed = 0;
  // Of the numerics that write the answer; other ones never go on with it.
  std::string fingerprint = {};
  // Times that the stream broke and was taken up again.
  int resumes = 0;
};

// Adds an event of a stream to the whole answer that it is part of: over all
// events of a stream, what GenerateOnce would have answered, but for the
// request's id (GenerateMetadata).
void AddEvent(const v1::GenerateResponse& event,
              v1::GenerateOnceResponse& whole);

// INVALID_ARGUMENT unless address is HOST:PORT ([HOST]:PORT for IPv6).
absl::Status CheckAddress(absl::string_view address);

// The same of each of several, comma separated.
absl::Status CheckAddresses(absl::string_view addresses);

// A connected channel: UNAVAILABLE if nothing answers there within the
// timeout, at once if the connection is refused.
absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectChannel(
    const std::string& address, const ConnectOptions& options);

// InferenceService and health. Thread-safe: any number of calls may run at
// once, over one connection a server that repairs itself.
class Client {
 public:
  // Returns false to cancel the call.
  using OnEvent = std::function<bool(const v1::GenerateResponse&)>;
  using OnAnswer =
      std::function<void(grpc::Status, const v1::GenerateOnceResponse&)>;

  // addresses: HOST:PORT, or several, comma separated. UNAVAILABLE if none of
  // them answers.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(
      const std::string& addresses, const ConnectOptions& options = {});
  explicit Client(std::shared_ptr<grpc::Channel> channel)
      : Client(std::vector{std::move(channel)}, 0) {}
  // Waits for the answers of GenerateOnceAsync that are still to come.
  ~Client();

  // Streams: calls on_event for every event, in order, on this thread.
  // CANCELLED if on_event returned false. metadata may be null; it is filled
  // in before the first event. Resumes by itself, within the timeout, unless
  // the server answered that it will not go on: FAILED_PRECONDITION where no
  // numerics of the begun answer's fingerprint are left. usage.cached_tokens
  // is then that of the last stream.
  grpc::Status Generate(const v1::GenerateRequest& request,
                        const CallOptions& options, const OnEvent& on_event,
                        GenerateMetadata* metadata = nullptr);
  // Sent again, too, if it breaks.
  grpc::Status GenerateOnce(const v1::GenerateRequest& request,
                            const CallOptions& options,
                            v1::GenerateOnceResponse* response);
  // Returns at once; calls on_answer exactly once, on a thread of gRPC's, which
  // it must not block. For many requests in flight from one thread. What it
  // returns cancels the call; it may be called at any time, or never. One try:
  // if it breaks, the next call goes to another server.
  std::function<void()> GenerateOnceAsync(v1::GenerateRequest request,
                                          const CallOptions& options,
                                          OnAnswer on_answer);

  grpc::Status Tokenize(const v1::TokenizeRequest& request,
                        const CallOptions& options,
                        v1::TokenizeResponse* response);
  grpc::Status Detokenize(const v1::DetokenizeRequest& request,
                          const CallOptions& options,
                          v1::DetokenizeResponse* response);
  grpc::Status GetServerInfo(const CallOptions& options,
                             v1::GetServerInfoResponse* response);
  // service: kInferenceServiceName, or empty for the server's liveness.
  grpc::Status CheckHealth(
      const std::string& service, const CallOptions& options,
      grpc::health::v1::HealthCheckResponse::ServingStatus* serving);

 private:
  class PendingCalls;
  struct Server {
    std::unique_ptr<v1::InferenceService::Stub> inference;
    std::unique_ptr<grpc::health::v1::Health::Stub> health;
  };

  Client(const std::vector<std::shared_ptr<grpc::Channel>>& channels,
         size_t preferred);
  // Makes later calls go to another server than `failed`, if they did not yet.
  void Avoid(size_t failed);
  RetryPolicy MakeRetryPolicy(const CallOptions& options,
                              absl::Time deadline) const;
  // One stream of a generation, to its end; on_event returned false: CANCELLED
  // and wanted is false.
  grpc::Status RunStream(size_t server, absl::Time deadline,
                         const OnEvent& on_event, ResumableStream* stream,
                         RetryPolicy* retry, GenerateMetadata* metadata,
                         bool* wanted);
  // Makes a call that may as well be made elsewhere, once a server.
  template <typename Call>
  grpc::Status CallAny(const CallOptions& options, const Call& call);

  std::shared_ptr<PendingCalls> pending_calls_;
  std::vector<Server> servers_;
  std::atomic<size_t> preferred_;  // where calls go first
};

// AdminService, which listens on a port of its own. Thread-safe.
class AdminClient {
 public:
  static absl::StatusOr<std::unique_ptr<AdminClient>> Connect(
      const std::string& address, const ConnectOptions& options = {});
  explicit AdminClient(std::shared_ptr<grpc::Channel> channel);

  grpc::Status ListWorkers(const CallOptions& options,
                           v1::ListWorkersResponse* response);
  grpc::Status Drain(const std::string& worker_id, const CallOptions& options);
  grpc::Status Resume(const std::string& worker_id, const CallOptions& options);

 private:
  std::unique_ptr<v1::AdminService::Stub> admin_;
};

}  // namespace invar

#endif  // INVAR_CLIENT_CLIENT_H_
