#include "client/request_pool.h"

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "client/inbox.h"
#include "common/status.h"

namespace invar {
namespace {

struct Ended {
  size_t index;
  grpc::Status status;
  v1::GenerateOnceResponse response;
};

// All state but the inbox belongs to the one thread that calls Run.
class Pool {
 public:
  Pool(Client& client, const std::vector<v1::GenerateRequest>& requests,
       const PoolOptions& options,
       const std::function<void(size_t, const v1::GenerateOnceResponse&)>&
           on_answer)
      : client_(client),
        requests_(requests),
        options_(options),
        on_answer_(on_answer),
        attempts_(requests.size(), 0),
        first_refusal_(requests.size(), absl::InfiniteFuture()),
        last_success_(absl::Now()) {}

  PoolResult Run() {
    while (true) {
      if (result_.status.ok()) Launch(absl::Now());
      if (in_flight_.empty() && (retries_.empty() || !result_.status.ok())) {
        return result_;
      }
      const absl::Time wake = retries_.empty() || !result_.status.ok()
                                  ? absl::InfiniteFuture()
                                  : retries_.begin()->first;
      for (Ended& ended : inbox_->TakeUntil(wake)) Handle(std::move(ended));
    }
  }

 private:
  void Launch(absl::Time now) {
    while (!retries_.empty() && retries_.begin()->first <= now) {
      Send(retries_.begin()->second);
      retries_.erase(retries_.begin());
    }
    // A request that waits for its retry keeps its place, as a thread that
    // sleeps would: to send others meanwhile would only fill the queue anew.
    while (next_ < requests_.size() &&
           in_flight_.size() + retries_.size() <
               static_cast<size_t>(options_.concurrency)) {
      Send(next_++);
    }
  }

  void Send(size_t index) {
    ++attempts_[index];
    in_flight_[index] = client_.GenerateOnceAsync(
        requests_[index], options_.call,
        [inbox = inbox_, index](grpc::Status status,
                                const v1::GenerateOnceResponse& response) {
          inbox->Put({index, std::move(status), response});
        });
  }

  void Handle(Ended ended) {
    in_flight_.erase(ended.index);
    if (!result_.status.ok()) return;  // Cancelled by the failure below.
    const absl::Time now = absl::Now();
    if (ended.status.ok()) {
      last_success_ = now;
      gave_up_ = false;
      on_answer_(ended.index, ended.response);
      return;
    }
    first_refusal_[ended.index] = std::min(first_refusal_[ended.index], now);
    if (MayRetry(ended, now)) {
      ++result_.retries;
      if (options_.on_retry) options_.on_retry(ended.status);
      retries_.emplace(now + Pause(ended), ended.index);
      return;
    }
    if (options_.on_failure) {
      gave_up_ = MayTryAgain(ended.status);
      options_.on_failure(ended.index, ended.status);
      return;
    }
    result_.status = ended.status;
    result_.index = ended.index;
    result_.attempts = attempts_[ended.index];
    for (const auto& [index, cancel] : in_flight_) cancel();
  }

  static bool MayTryAgain(const grpc::Status& status) {
    return status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED ||
           status.error_code() == grpc::StatusCode::UNAVAILABLE;
  }

  bool MayRetry(const Ended& ended, absl::Time now) const {
    // Once a request has been patient in vain, those after it need not be.
    if (gave_up_ || !MayTryAgain(ended.status)) return false;
    const grpc::StatusCode code = ended.status.error_code();
    const absl::Duration patience = code == grpc::StatusCode::RESOURCE_EXHAUSTED
                                        ? options_.queue_patience
                                        : options_.outage_patience;
    return now - std::max(first_refusal_[ended.index], last_success_) <=
           patience;
  }

  absl::Duration Pause(const Ended& ended) const {
    absl::Duration pause = ErrorRetryAfter(ended.status);
    if (pause <= absl::ZeroDuration()) {
      const int doublings = std::min(attempts_[ended.index] - 1, 16);
      pause = std::min(options_.first_pause * (1 << doublings),
                       options_.last_pause);
    }
    // Up to a half more, by index: those refused together come back apart.
    return pause * (1 + static_cast<double>(ended.index % 16) / 32);
  }

  Client& client_;
  const std::vector<v1::GenerateRequest>& requests_;
  const PoolOptions& options_;
  const std::function<void(size_t, const v1::GenerateOnceResponse&)>&
      on_answer_;
  const std::shared_ptr<Inbox<Ended>> inbox_ =
      std::make_shared<Inbox<Ended>>();
  size_t next_ = 0;
  // Index to what cancels it.
  std::map<size_t, std::function<void()>> in_flight_;
  // When to send it again, and which.
  std::set<std::pair<absl::Time, size_t>> retries_;
  std::vector<int> attempts_;
  std::vector<absl::Time> first_refusal_;
  absl::Time last_success_;
  bool gave_up_ = false;  // since the last success
  PoolResult result_;
};

}  // namespace

PoolResult RunRequests(
    Client& client, const std::vector<v1::GenerateRequest>& requests,
    const PoolOptions& options,
    const std::function<void(size_t, const v1::GenerateOnceResponse&)>&
        on_answer) {
  return Pool(client, requests, options, on_answer).Run();
}

}  // namespace invar
