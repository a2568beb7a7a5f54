// A model for the tests of verify and selftest: it keeps the contract, so that
// each answer is a function of its request, or breaks it as a test says.
#ifndef INVAR_CLIENT_TOY_MODEL_H_
#define INVAR_CLIENT_TOY_MODEL_H_

#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "client/fake_server.h"
#include "invar/v1/inference.pb.h"

namespace invar {

// What an answer must not depend on.
struct ToySituation {
  const v1::GenerateRequest& request;
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;
  int in_flight = 1;  // requests, at the most while this one ran
  bool streamed = false;
};

// Thread-safe. Ids are bytes, of prompts and, as letters, of answers.
class ToyModel {
 public:
  // Whether a situation moves the answer; none of them should.
  using Defect = std::function<bool(const ToySituation&)>;

  explicit ToyModel(Defect defect = nullptr) : defect_(std::move(defect)) {}

  v1::GenerateOnceResponse Respond(const v1::GenerateRequest& request,
                                   bool streamed);

  // A server of it. The model must outlive what is made of this.
  FakeBehaviour Behaviour();

  static v1::Numerics Numerics();

 private:
  // Notes the prompt; the tokens of it that were in the cache.
  int32_t LookUp(const v1::GenerateRequest& request,
                 const std::vector<int32_t>& prompt);
  v1::Answer Write(const v1::GenerateRequest& request,
                   const std::vector<int32_t>& prompt, int32_t index,
                   uint64_t salt) const;

  const Defect defect_;
  absl::Mutex mutex_;
  std::set<std::vector<int32_t>> cache_ ABSL_GUARDED_BY(mutex_);
  int in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  int most_in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace invar

#endif  // INVAR_CLIENT_TOY_MODEL_H_
