// A client that resumes: what it has of its answers, and whether that is what
// one undisturbed pool would have written.
#ifndef INVAR_TESTS_SIMULATION_CLIENT_MODEL_H_
#define INVAR_TESTS_SIMULATION_CLIENT_MODEL_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "scheduler/core/types.h"

namespace invar::simulation {

class ClientModel {
 public:
  // What a scheduler tells it, in order.
  using News =
      std::variant<scheduler::Begin, scheduler::Deliver, scheduler::Finish>;
  enum class State { kWaiting, kStreaming, kComplete, kRefused };

  // `spec` names the request and its seed; the rest is filled in each time.
  explicit ClientModel(scheduler::RequestSpec spec)
      : spec_(std::move(spec)), answers_(spec_.answers) {}

  // What to send now, for all that has not come.
  std::shared_ptr<const scheduler::RequestSpec> NextRequest(
      scheduler::RequestNumber number);
  // The stream is lost, with all that was on its way.
  void Lose();
  void Take(const News& news);

  State state() const { return state_; }
  bool resumes() const { return !fingerprint_.empty(); }
  const scheduler::RequestSpec& spec() const { return spec_; }
  // Of what has come; empty: nothing has.
  const std::string& fingerprint() const { return fingerprint_; }
  // After which output token an answer's stop string matches; 0: never. A
  // property of the text, and so of seed and index.
  int64_t StopAfter(int32_t index) const;
  const std::string& broken() const { return broken_; }

  // The scheduler that it streams from, its number there, and what is on the
  // way. Of no meaning while it waits.
  int place = 0;
  scheduler::RequestNumber number = 0;
  std::deque<News> on_the_way;
  int last_place = -1;               // of the stream before
  bool forgets_fingerprint = false;  // a plant

 private:
  struct Answer {
    std::vector<int32_t> tokens;
    size_t again = 0;  // tokens that come again before the rest
  };

  void On(const scheduler::Begin& begin);
  void On(const scheduler::Deliver& deliver);
  void On(const scheduler::Finish& finish);
  // Whether a value is that of the pool that began; the first one says which.
  void Check(float value, bool is_score, int32_t index, int64_t position);
  void Break(std::string what);

  scheduler::RequestSpec spec_;
  State state_ = State::kWaiting;
  std::string announced_;    // by the stream's Begin
  std::string fingerprint_;  // of what has come; empty: nothing has
  int pool_ = -1;
  int32_t scores_ = 0;  // prompt log-probabilities that have come
  std::vector<Answer> answers_;
  std::string broken_;
};

}  // namespace invar::simulation

#endif  // INVAR_TESTS_SIMULATION_CLIENT_MODEL_H_
