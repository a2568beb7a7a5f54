#include "client/bench/load.h"

#include <sys/resource.h>

#include <algorithm>
#include <memory>
#include <set>
#include <utility>

#include "client/bench/arrivals.h"
#include "client/inbox.h"
#include "common/status.h"

namespace invar::bench {
namespace {

constexpr Clock::duration kProgressInterval = std::chrono::seconds(1);
// A place whose request failed at once would otherwise send as fast as it can.
constexpr absl::Duration kPauseAfterFailure = absl::Milliseconds(100);

// User and system, of the whole process.
absl::Duration CpuTime() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return absl::DurationFromTimeval(usage.ru_utime) +
         absl::DurationFromTimeval(usage.ru_stime);
}

Clock::duration ToClock(absl::Duration duration) {
  return std::chrono::duration_cast<Clock::duration>(
      absl::ToChronoNanoseconds(duration));
}

// All state but the inbox belongs to the one thread that calls Run.
class Load {
 public:
  Load(v1::InferenceService::Stub& stub, const Workload& workload,
       const LoadOptions& options,
       const std::function<void(const LoadProgress&)>& on_progress)
      : stub_(stub),
        workload_(workload),
        options_(options),
        on_progress_(on_progress) {
    if (options_.rate) arrivals_.emplace(*options_.rate, options_.arrival_seed);
  }

  LoadResult Run() {
    const absl::Duration cpu_before = CpuTime();
    result_.start = Clock::now();
    stop_ = options_.duration ? result_.start + ToClock(*options_.duration)
                              : Clock::time_point::max();
    shown_ = result_.start;
    for (int i = 0; i < options_.concurrency; ++i) {
      free_places_.insert(result_.start);
    }
    Prepare();
    while (true) {
      while (const auto due = Due(Clock::now())) Send(*due);
      if (in_flight_ == 0 && !MayBegin(Clock::now())) break;
      const auto wake = std::min(NextWake(), shown_ + kProgressInterval);
      for (RequestRecord& record : inbox_->TakeUntil(
               absl::Now() + absl::FromChrono(wake - Clock::now()))) {
        Handle(std::move(record));
      }
      ShowProgress();
    }
    result_.cpu_time = CpuTime() - cpu_before;
    Order();
    return std::move(result_);
  }

 private:
  // Makes the next request ahead of its time.
  void Prepare() {
    if (options_.requests && next_place_ >= *options_.requests) return;
    next_distinct_ = workload_.DistinctAt(next_place_);
    next_request_ = workload_.Make(options_.first_index + next_distinct_);
    if (arrivals_) next_arrival_ = result_.start + ToClock(arrivals_->Next());
  }

  // Whether another request is still to begin, now or later.
  bool MayBegin(Clock::time_point now) const {
    if (options_.requests && next_place_ >= *options_.requests) return false;
    return (arrivals_ ? next_arrival_ : now) < stop_;
  }

  // The earliest time at which another request could begin.
  Clock::time_point NextWake() const {
    if (!MayBegin(Clock::now())) return Clock::time_point::max();
    Clock::time_point wake = arrivals_ ? next_arrival_ : result_.start;
    if (options_.concurrency == 0) return wake;
    if (free_places_.empty()) return Clock::time_point::max();
    return std::max(wake, *free_places_.begin());
  }

  // When the request that may be sent now was due; nothing if none may.
  std::optional<Clock::time_point> Due(Clock::time_point now) const {
    if (!MayBegin(now) || NextWake() > now) return std::nullopt;
    return arrivals_ ? next_arrival_ : now;
  }

  void Send(Clock::time_point due) {
    if (options_.concurrency > 0) free_places_.erase(free_places_.begin());
    ++in_flight_;
    RequestRecord record;
    record.place = next_place_++;
    record.distinct = next_distinct_;
    record.due = due;
    StreamCall::Start(stub_, std::move(next_request_), options_.timeout,
                      options_.keep_tokens, std::move(record),
                      [inbox = inbox_](RequestRecord ended) {
                        inbox->Put(std::move(ended));
                      });
    Prepare();
  }

  void Handle(RequestRecord record) {
    --in_flight_;
    Clock::time_point free_from = record.ended;
    if (!record.status.ok()) {
      ++failed_;
      const absl::Duration asked = ErrorRetryAfter(record.status);
      free_from +=
          ToClock(asked > absl::ZeroDuration() ? asked : kPauseAfterFailure);
    }
    if (options_.concurrency > 0) free_places_.insert(free_from);
    output_tokens_ += record.output_tokens;
    result_.records.push_back(std::move(record));
  }

  void ShowProgress() {
    const Clock::time_point now = Clock::now();
    if (now < shown_ + kProgressInterval) return;
    shown_ = now;
    on_progress_({static_cast<int64_t>(result_.records.size()), failed_,
                  in_flight_, output_tokens_,
                  absl::FromChrono(now - result_.start)});
  }

  void Order() {
    result_.end = result_.start;
    for (const RequestRecord& record : result_.records) {
      result_.end = std::max(result_.end, record.ended);
    }
    std::sort(result_.records.begin(), result_.records.end(),
              [](const RequestRecord& a, const RequestRecord& b) {
                return a.place < b.place;
              });
  }

  v1::InferenceService::Stub& stub_;
  const Workload& workload_;
  const LoadOptions& options_;
  const std::function<void(const LoadProgress&)>& on_progress_;
  const std::shared_ptr<Inbox<RequestRecord>> inbox_ =
      std::make_shared<Inbox<RequestRecord>>();
  std::optional<PoissonArrivals> arrivals_;
  // No request begins from then on.
  Clock::time_point stop_;
  // From when each place of the closed loop is free.
  std::multiset<Clock::time_point> free_places_;
  // What is sent next.
  int64_t next_place_ = 0;
  int64_t next_distinct_ = 0;
  v1::GenerateRequest next_request_;
  Clock::time_point next_arrival_;
  int64_t in_flight_ = 0;
  int64_t failed_ = 0;
  int64_t output_tokens_ = 0;
  Clock::time_point shown_;
  LoadResult result_;
};

}  // namespace

LoadResult RunLoad(
    v1::InferenceService::Stub& stub, const Workload& workload,
    const LoadOptions& options,
    const std::function<void(const LoadProgress&)>& on_progress) {
  return Load(stub, workload, options, on_progress).Run();
}

}  // namespace invar::bench
