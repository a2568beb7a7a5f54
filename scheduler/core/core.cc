#include "scheduler/core/core.h"

#include <algorithm>
#include <utility>

namespace invar::scheduler {

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
  ExpireQueued();
}

std::vector<v1::WorkerInfo> Core::Workers(absl::Time now) const {
  std::vector<v1::WorkerInfo> infos;
  for (const auto& [link, worker] : workers_.all()) {
    infos.push_back(worker.Info(now));
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

const v1::Numerics* Core::PrimaryNumerics() const {
  const Worker* worker = workers_.Primary();
  return worker == nullptr ? nullptr : &worker->numerics;
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
