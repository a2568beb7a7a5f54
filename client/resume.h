// One stream out of several: what has come of an answer, how to ask for the
// rest, and what of the rest is new.
#ifndef INVAR_CLIENT_RESUME_H_
#define INVAR_CLIENT_RESUME_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "invar/v1/inference.pb.h"

namespace invar {

// A request whose stream may break and be taken up again, anywhere. The
// events that Take returns are those of one unbroken stream. Not thread-safe.
class ResumableStream {
 public:
  explicit ResumableStream(v1::GenerateRequest request);

  // The request to send next, for all that has not come.
  v1::GenerateRequest NextRequest();
  // What the stream's initial metadata said, before its first event.
  void Begin(const std::string& request_id, const std::string& fingerprint);
  // The part of an event that is new; nothing if it has all come before.
  // DATA_LOSS: what came again is not what came before.
  absl::StatusOr<std::optional<v1::GenerateResponse>> Take(
      v1::GenerateResponse event);

  // The final event has come.
  bool ended() const { return ended_; }
  // Whether NextRequest can ask for the rest: without a fingerprint, nothing
  // says who may write it.
  bool CanResume() const { return !has_news_ || !fingerprint_.empty(); }

 private:
  // One of the request's answers.
  struct Progress {
    std::vector<int32_t> token_ids;
    int32_t next_position = 0;  // after them; 0: none has come
    int64_t text_bytes = 0;
    // Of these, those that came after the last token: text that was held back
    // until the end.
    int64_t tail_bytes = 0;
    // Of the stream that runs: what comes again before the rest.
    size_t tokens_again = 0;
    int64_t text_again = 0;
  };

  absl::Status CutDelta(Progress* progress, v1::TokenDelta* delta) const;
  Progress& At(int32_t index);
  // Whether the rest can be asked for; else all is written again.
  bool one_answer() const { return request_.sampling().n() < 2; }

  v1::GenerateRequest request_;
  std::string fingerprint_;
  std::vector<Progress> answers_;  // by index
  int32_t prompt_logprobs_ = 0;    // have come
  bool has_news_ = false;
  bool resumed_ = false;  // the stream that runs is not the first
  bool ended_ = false;
};

}  // namespace invar

#endif  // INVAR_CLIENT_RESUME_H_
