// What each request is answered when it runs alone: one reference run for each
// setting and request.
#ifndef INVAR_TESTS_CONTRACT_REFERENCES_H_
#define INVAR_TESTS_CONTRACT_REFERENCES_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "tests/contract/backend.h"
#include "tests/contract/lanes.h"
#include "tests/contract/model_shelf.h"
#include "tests/contract/requests.h"
#include "worker/engine/testing/engine_harness.h"

namespace invar::contract {

// Room for the longest request of the matrix.
inline constexpr int kContextTokens = kPositions + 64;

Engine::Options EngineOptions(const Model& model, int64_t kv_blocks,
                              int64_t running, int64_t step_tokens);

// Computed with the backend's first variant, in one engine for each request,
// from a cold, clean cache. Thread-safe.
class References {
 public:
  References(const Backend* backend, const Checkpoints* checkpoints)
      : backend_(backend), shelf_(backend, checkpoints) {}

  // The answer in full. Aborts if there is none: there is no matrix without it.
  const Answer& Alone(const Setting& setting, const Request& request);

  // LaneText(), prefilled.
  const LaneRows& Lanes(const Setting& setting);

  // A line for each setting whose Lanes() were asked for, with a digest of all
  // their bits: two processes must print the same.
  std::vector<std::string> LaneDigests();

  const Extent& extent() const { return backend_->extent; }

 private:
  const Backend* const backend_;
  absl::Mutex mutex_;
  ModelShelf shelf_ ABSL_GUARDED_BY(mutex_);
  // Nodes never move.
  std::map<std::pair<Setting, std::string>, Answer> answers_
      ABSL_GUARDED_BY(mutex_);
  std::map<Setting, LaneRows> lanes_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace invar::contract

#endif  // INVAR_TESTS_CONTRACT_REFERENCES_H_
