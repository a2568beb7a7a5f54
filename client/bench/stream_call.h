// One streamed request, with a clock beside it.
#ifndef INVAR_CLIENT_BENCH_STREAM_CALL_H_
#define INVAR_CLIENT_BENCH_STREAM_CALL_H_

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>
#include <grpcpp/support/status.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "invar/v1/inference.grpc.pb.h"

namespace invar::bench {

// Never set back, unlike the time of day.
using Clock = std::chrono::steady_clock;

// What came of one request.
struct RequestRecord {
  // Its place in the sequence, from 0; which request stood there.
  int64_t place = 0;
  int64_t distinct = 0;
  // When it was due, when it was sent, when its status was there.
  Clock::time_point due;
  Clock::time_point sent;
  Clock::time_point ended;
  grpc::Status status;
  // Seconds from due to the first token, and from each token to the next: 0
  // between tokens of one event.
  float first_token = 0;
  std::vector<float> gaps = {};
  // Events with tokens.
  int32_t deltas = 0;
  int32_t input_tokens = 0;
  int32_t cached_tokens = 0;
  int32_t output_tokens = 0;
  std::string fingerprint = {};
  // Of the output: as the receipt has it (common/digest.h: TokenDigest).
  std::string output_digest = {};
  // Kept if asked for.
  std::vector<int32_t> token_ids = {};
  std::vector<float> logprobs = {};
};

// A call that owns itself: begins with Start, ends with one call of on_end, on
// a thread of gRPC's, after which nothing of it holds on to the channel.
class StreamCall final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  using OnEnd = std::function<void(RequestRecord)>;

  // record: with place, distinct and due. A status OK becomes DATA_LOSS if what
  // arrived is not what the receipt says was sent. The stub must live until
  // on_end was called.
  static void Start(v1::InferenceService::Stub& stub,
                    v1::GenerateRequest request, absl::Duration timeout,
                    bool keep_tokens, RequestRecord record, OnEnd on_end);

 private:
  StreamCall(v1::GenerateRequest request, bool keep_tokens,
             RequestRecord record, OnEnd on_end);

  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;
  void OnTokens(const v1::TokenDelta& delta);
  void OnFinal(const v1::GenerateFinal& final);
  void CheckReceipt();

  // Holds this until the call has ended.
  std::unique_ptr<StreamCall> self_;
  const bool keep_tokens_;
  grpc::ClientContext context_;
  const v1::GenerateRequest request_;
  v1::GenerateResponse event_;
  RequestRecord record_;
  OnEnd on_end_;
  Clock::time_point last_tokens_;
};

}  // namespace invar::bench

#endif  // INVAR_CLIENT_BENCH_STREAM_CALL_H_
