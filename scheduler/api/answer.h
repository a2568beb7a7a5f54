// One answer on its way to a client: tokens in, events out.
#ifndef INVAR_SCHEDULER_API_ANSWER_H_
#define INVAR_SCHEDULER_API_ANSWER_H_

#include <grpcpp/support/status.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "invar/v1/inference.pb.h"
#include "scheduler/core/types.h"
#include "scheduler/tokenizer/stop_matcher.h"
#include "scheduler/tokenizer/stream_decoder.h"

namespace invar::scheduler {

// Where an answer goes. Called by one thread at a time: the one that reads the
// request, then the core loop's. Must not block.
class AnswerSink {
 public:
  virtual ~AnswerSink() = default;
  virtual void OnEvent(v1::GenerateResponse event) = 0;
  // The last call. OK follows a `final` event.
  virtual void OnEnd(const grpc::Status& status) = 0;
  // Whether the client has gone. Thread-safe.
  virtual bool cancelled() const = 0;
};

// Turns what the core delivers into the public events: ids to text, half
// characters and possible stop strings held back, usage and receipt at the
// end. Used by the core loop's thread alone.
class Answer {
 public:
  struct Options {
    std::string model_name;
    bool include_stop_text = false;
    bool skip_special_tokens = true;
  };

  Answer(std::shared_ptr<const RequestSpec> spec, const Tokenizer& tokenizer,
         StopMatcher stops, Options options, std::shared_ptr<AnswerSink> sink);

  absl::Time arrived() const { return arrived_; }
  bool has_output() const { return output_.size() > resumed_; }
  bool ended_by_stop_string() const {
    return stops_.matched_stop().has_value();
  }
  const RequestSpec& spec() const { return *spec_; }

  void Handle(const Begin& action);
  // True: a stop string matched, the answer has ended, and nobody wants more.
  bool Handle(const Deliver& action);
  void Handle(const Finish& action);

 private:
  // Feeds ids to the text; returns how many were used before a stop string
  // matched.
  int AppendTokens(std::span<const int32_t> ids, std::string* text);
  void End(v1::Finish::Reason reason);
  v1::Receipt MakeReceipt() const;

  const std::shared_ptr<const RequestSpec> spec_;
  StreamDecoder decoder_;
  StopMatcher stops_;
  const Options options_;
  const std::shared_ptr<AnswerSink> sink_;
  const absl::Time arrived_ = absl::Now();
  const size_t resumed_;
  std::string fingerprint_;
  int32_t max_tokens_ = 0;
  int32_t cached_tokens_ = 0;
  std::vector<int32_t> output_;  // resumed tokens included
  bool ended_ = false;
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_API_ANSWER_H_
