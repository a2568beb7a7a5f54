#include "scheduler/core/core.h"

#include <algorithm>
#include <set>
#include <utility>

#include "common/numerics.h"

namespace invar::scheduler {
namespace {

// How long a worker that was refused, and is gone, is still shown.
constexpr absl::Duration kRefusalShown = absl::Minutes(1);

}  // namespace

std::vector<Action> Core::Step(const Event& event, absl::Time now) {
  now_ = now;
  started_ = std::min(started_, now);
  std::visit([this](const auto& one) { On(one); }, event);
  Dispatch();
  UpdateReadiness();
  return std::exchange(actions_, {});
}

void Core::On(const Tick&) {
  LoseSilent();
  workers_.ForgetRefusedBefore(now_ - kRefusalShown);
  ExpireQueued();
}

std::vector<v1::WorkerInfo> Core::Workers(absl::Time now) const {
  std::vector<v1::WorkerInfo> infos;
  const Worker* primary = workers_.Primary();
  std::set<std::string> attached;
  for (const auto& [link, worker] : workers_.all()) {
    v1::WorkerInfo& info = infos.emplace_back(worker.Info(now));
    attached.insert(worker.id());
    if (primary != nullptr && worker.admitted()) {
      info.set_first_difference(
          FirstDifference(primary->numerics, worker.numerics));
    }
    if (const RefusedWorker* refused = workers_.FindRefused(worker.id())) {
      info.set_reason(refused->refusal.text);
    }
  }
  for (const auto& [id, refused] : workers_.refused()) {
    if (!attached.contains(id)) infos.push_back(refused.Info());
  }
  std::sort(infos.begin(), infos.end(), [](const auto& a, const auto& b) {
    return a.worker_id() < b.worker_id();
  });
  return infos;
}

std::string Core::PrimaryFingerprint() const {
  const Worker* worker = workers_.Primary();
  return worker == nullptr ? "" : worker->fingerprint();
}

std::vector<v1::Pool> Core::Pools() const {
  std::vector<const Worker*> admitted;
  for (const auto& [link, worker] : workers_.all()) {
    if (worker.admitted()) admitted.push_back(&worker);
  }
  const std::string primary = PrimaryFingerprint();
  std::sort(admitted.begin(), admitted.end(),
            [&](const Worker* a, const Worker* b) {
              return std::pair(a->fingerprint() != primary, a->admission) <
                     std::pair(b->fingerprint() != primary, b->admission);
            });
  std::vector<v1::Pool> pools;
  for (const Worker* worker : admitted) {
    auto pool =
        std::find_if(pools.begin(), pools.end(), [&](const v1::Pool& one) {
          return one.numerics().fingerprint() == worker->fingerprint();
        });
    if (pool == pools.end()) {
      pool = pools.emplace(pools.end());
      *pool->mutable_numerics() = worker->numerics;
      pool->set_first_difference(
          FirstDifference(pools[0].numerics(), worker->numerics));
    }
    pool->set_workers(pool->workers() + 1);
  }
  return pools;
}

int32_t Core::MaxContextTokens() const {
  const Worker* worker = workers_.Primary();
  if (worker == nullptr) return 0;
  const int32_t limit = options_.limits.max_context_tokens();
  return limit == 0 ? worker->max_context_tokens
                    : std::min(limit, worker->max_context_tokens);
}

void Core::Info(std::string text) {
  Emit(Log{Log::Level::kInfo, std::move(text)});
}

void Core::Warn(std::string text) {
  Emit(Log{Log::Level::kWarning, std::move(text)});
}

}  // namespace invar::scheduler
