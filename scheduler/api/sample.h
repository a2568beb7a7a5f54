// One of a request's answers as it is written: token ids in, text out.
#ifndef INVAR_SCHEDULER_API_SAMPLE_H_
#define INVAR_SCHEDULER_API_SAMPLE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "invar/v1/inference.pb.h"
#include "invar/worker/v1/link.pb.h"
#include "scheduler/core/types.h"
#include "scheduler/tokenizer/stop_matcher.h"
#include "scheduler/tokenizer/stream_decoder.h"

namespace invar::scheduler {

// Half characters and possible stop strings are held back. Not thread-safe.
class Sample {
 public:
  struct TextOptions {
    bool include_stop_text = false;
    bool skip_special_tokens = true;
  };

  // The tokens that the request resumes from only set the scene: the client
  // has their text. `stops` is fresh, of the request's stop strings.
  Sample(std::shared_ptr<const RequestSpec> spec, int32_t index,
         const Tokenizer& tokenizer, StopMatcher stops, TextOptions options);

  // Takes new tokens and returns what the client is sent. What comes after a
  // stop string is dropped.
  v1::TokenDelta Append(const worker::v1::AttemptReport& report);
  // The text that was held back and is certain now that no token follows.
  std::string End();

  // A stop string matched: no more is wanted.
  bool stopped() const { return stops_.matched_stop().has_value(); }
  // Tokens beyond those that the request resumes from.
  bool has_output() const {
    return output_.size() > spec_->resume_tokens.size();
  }
  const std::vector<int32_t>& output() const { return output_; }
  int32_t position() const {
    return static_cast<int32_t>(spec_->prompt.size() + output_.size());
  }
  // Why it ended, which `reason` says where no stop string matched.
  v1::Finish MakeFinish(worker::v1::Terminal::Reason reason) const;

 private:
  // Feeds ids to the text; returns how many were used before a stop string
  // matched.
  int AppendTokens(std::span<const int32_t> ids, std::string* text);

  const std::shared_ptr<const RequestSpec> spec_;
  const int32_t index_;
  StreamDecoder decoder_;
  StopMatcher stops_;
  const TextOptions options_;
  std::vector<int32_t> output_;  // resumed tokens included
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_API_SAMPLE_H_
