#include "client/bench/stream_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/digest.h"

namespace invar::bench {
namespace {

float Seconds(Clock::duration duration) {
  return std::chrono::duration<float>(duration).count();
}

}  // namespace

void StreamCall::Start(v1::InferenceService::Stub& stub,
                       v1::GenerateRequest request, absl::Duration timeout,
                       bool keep_tokens, RequestRecord record, OnEnd on_end) {
  auto owned = std::unique_ptr<StreamCall>(new StreamCall(
      std::move(request), keep_tokens, std::move(record), std::move(on_end)));
  StreamCall* call = owned.get();
  call->self_ = std::move(owned);
  call->context_.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  stub.async()->Generate(&call->context_, &call->request_, call);
  call->StartRead(&call->event_);
  call->record_.sent = Clock::now();
  call->StartCall();
}

StreamCall::StreamCall(v1::GenerateRequest request, bool keep_tokens,
                       RequestRecord record, OnEnd on_end)
    : keep_tokens_(keep_tokens),
      request_(std::move(request)),
      record_(std::move(record)),
      on_end_(std::move(on_end)) {}

void StreamCall::OnReadDone(bool ok) {
  if (!ok) return;
  if (event_.has_delta()) OnTokens(event_.delta());
  if (event_.has_final()) OnFinal(event_.final());
  StartRead(&event_);
}

void StreamCall::OnTokens(const v1::TokenDelta& delta) {
  if (delta.token_ids().empty()) return;  // Only text that was held back.
  const Clock::time_point now = Clock::now();
  if (record_.deltas++ == 0) {
    record_.first_token = Seconds(now - record_.due);
    record_.gaps.reserve(request_.stopping().max_tokens());
  } else {
    record_.gaps.push_back(Seconds(now - last_tokens_));
  }
  record_.gaps.resize(record_.gaps.size() + delta.token_ids_size() - 1);
  last_tokens_ = now;
  record_.token_ids.insert(record_.token_ids.end(), delta.token_ids().begin(),
                           delta.token_ids().end());
  record_.logprobs.insert(record_.logprobs.end(), delta.logprobs().begin(),
                          delta.logprobs().end());
}

void StreamCall::OnFinal(const v1::GenerateFinal& final) {
  record_.input_tokens = final.usage().prompt_tokens();
  record_.cached_tokens = final.usage().cached_tokens();
  if (final.completions().empty()) return;
  const v1::Receipt& receipt = final.completions(0).receipt();
  record_.fingerprint = receipt.fingerprint();
  record_.output_digest = receipt.output_digest();
}

void StreamCall::CheckReceipt() {
  if (!record_.status.ok() ||
      record_.output_digest == TokenDigest(record_.token_ids)) {
    return;
  }
  record_.status = grpc::Status(
      grpc::StatusCode::DATA_LOSS,
      absl::StrCat("the ", record_.output_tokens,
                   " tokens received are not those that the receipt digests"));
}

void StreamCall::OnDone(const grpc::Status& status) {
  record_.ended = Clock::now();
  record_.status = status;
  record_.output_tokens = static_cast<int32_t>(record_.token_ids.size());
  CheckReceipt();
  if (!keep_tokens_) {
    record_.token_ids = {};
    record_.logprobs = {};
  }
  RequestRecord record = std::move(record_);
  const OnEnd on_end = std::move(on_end_);
  // First, since the context holds the channel: see client/client.cc.
  self_.reset();
  on_end(std::move(record));
}

}  // namespace invar::bench
