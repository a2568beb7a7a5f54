// The scheduler's end of the worker link, for tests: it does what it is told.
#ifndef INVAR_WORKER_LINK_TESTING_FAKE_SCHEDULER_H_
#define INVAR_WORKER_LINK_TESTING_FAKE_SCHEDULER_H_

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/config.h"
#include "invar/worker/v1/link.grpc.pb.h"

namespace invar {

class FakeScheduler : public worker::v1::WorkerLinkService::Service {
 public:
  using Request = worker::v1::AttachRequest;
  using Response = worker::v1::AttachResponse;

  // Port 0: the system chooses.
  explicit FakeScheduler(int port = 0) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(absl::StrCat("127.0.0.1:", port),
                             grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeScheduler() override {
    server_->Shutdown(absl::ToChronoTime(absl::UnixEpoch()));
  }

  int port() const { return port_; }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

  // Sends on the latest stream; false if there is none.
  bool Send(const Response& response) {
    absl::MutexLock lock(&mutex_);
    return stream_ != nullptr && stream_->Write(response);
  }

  // Takes the first message that fits, discarding those before; waits for it.
  // A message without a case set: none came.
  Request Take(const std::function<bool(const Request&)>& fits) {
    const auto ready = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
      return std::any_of(received_.begin(), received_.end(), fits);
    };
    absl::MutexLock lock(&mutex_);
    if (!mutex_.AwaitWithTimeout(absl::Condition(&ready), absl::Seconds(20))) {
      return Request();
    }
    while (!fits(received_.front())) received_.pop_front();
    Request request = std::move(received_.front());
    received_.pop_front();
    return request;
  }
  Request Take(Request::MessageCase which) {
    return Take([which](const Request& request) {
      return request.message_case() == which;
    });
  }

  // Whether a message of the kind has come and not been taken.
  bool Has(Request::MessageCase which) {
    absl::MutexLock lock(&mutex_);
    return std::any_of(received_.begin(), received_.end(),
                       [which](const Request& request) {
                         return request.message_case() == which;
                       });
  }

  // Ends the latest stream.
  void Hang(grpc::Status status) {
    absl::MutexLock lock(&mutex_);
    status_ = std::move(status);
    if (context_ != nullptr) context_->TryCancel();
  }

  // Waits until the latest stream has ended.
  bool WaitEnd() {
    absl::MutexLock lock(&mutex_);
    const auto ended = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
      return stream_ == nullptr;
    };
    return mutex_.AwaitWithTimeout(absl::Condition(&ended), absl::Seconds(20));
  }

  // Sends a config with its digest.
  bool Configure(int64_t epoch, const worker::v1::WorkerConfig& config) {
    Response response;
    response.mutable_configure()->set_epoch(epoch);
    *response.mutable_configure()->mutable_config() = config;
    response.mutable_configure()->set_config_digest(ConfigDigest(config));
    return Send(response);
  }

 private:
  grpc::Status Attach(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<Response, Request>* stream) override {
    {
      absl::MutexLock lock(&mutex_);
      context_ = context;
      stream_ = stream;
    }
    Request request;
    while (stream->Read(&request)) {
      absl::MutexLock lock(&mutex_);
      received_.push_back(std::move(request));
    }
    absl::MutexLock lock(&mutex_);
    if (stream_ == stream) {
      stream_ = nullptr;
      context_ = nullptr;
    }
    return std::exchange(status_, grpc::Status::OK);
  }

  absl::Mutex mutex_;
  grpc::ServerContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  grpc::ServerReaderWriter<Response, Request>* stream_ ABSL_GUARDED_BY(mutex_) =
      nullptr;
  std::deque<Request> received_ ABSL_GUARDED_BY(mutex_);
  grpc::Status status_ ABSL_GUARDED_BY(mutex_);
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace invar

#endif  // INVAR_WORKER_LINK_TESTING_FAKE_SCHEDULER_H_
