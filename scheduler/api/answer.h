// The answer to one request on its way to a client: what the core says in,
// public events out.
#ifndef INVAR_SCHEDULER_API_ANSWER_H_
#define INVAR_SCHEDULER_API_ANSWER_H_

#include <grpcpp/support/status.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "invar/v1/inference.pb.h"
#include "scheduler/api/sample.h"
#include "scheduler/core/types.h"

namespace invar::scheduler {

// Where an answer goes. Called by one thread at a time: the one that reads the
// request, then the core loop's. Must not block.
class AnswerSink {
 public:
  virtual ~AnswerSink() = default;
  // Who will write the answer, before the first event; again if it changed
  // its pool before that.
  virtual void OnBegin(const std::string& fingerprint) {}
  virtual void OnEvent(v1::GenerateResponse event) = 0;
  // The last call. OK follows a `final` event.
  virtual void OnEnd(const grpc::Status& status) = 0;
  // Whether the client has gone. Thread-safe.
  virtual bool cancelled() const = 0;
};

// Turns what the core delivers into the public events, usage and receipts at
// the end. Used by the core loop's thread alone.
class Answer {
 public:
  // `samples`: one for each of spec->answers, by index.
  Answer(std::shared_ptr<const RequestSpec> spec, std::string model_name,
         std::vector<Sample> samples, std::shared_ptr<AnswerSink> sink);

  absl::Time arrived() const { return arrived_; }
  bool has_begun() const { return !fingerprint_.empty(); }
  bool has_output() const;
  // Whether some answer ended by its length.
  bool reached_length() const;
  const RequestSpec& spec() const { return *spec_; }

  void Handle(const Begin& action);
  // True: a stop string matched, and nobody wants more of this sample.
  bool Handle(const Deliver& action);
  void Handle(const AnswerEnded& action);
  void Handle(const Finish& action);

 private:
  struct State {
    Sample sample;
    bool ended = false;
    v1::Finish finish = {};
    int32_t cached_tokens = 0;
  };

  // Sends what a sample held back.
  void End(State* state, worker::v1::Terminal::Reason reason);
  void SendFinal();
  v1::Receipt MakeReceipt(int32_t index) const;

  const std::shared_ptr<const RequestSpec> spec_;
  const std::string model_name_;
  std::vector<State> states_;  // by index
  const std::shared_ptr<AnswerSink> sink_;
  const absl::Time arrived_ = absl::Now();
  std::string fingerprint_;
  int32_t max_tokens_ = 0;
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_API_ANSWER_H_
