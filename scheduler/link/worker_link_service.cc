#include "scheduler/link/worker_link_service.h"

#include <algorithm>
#include <utility>

#include "common/config.h"
#include "common/seed.h"
#include "common/status.h"
#include "scheduler/link/link_stream.h"

namespace invar::scheduler {
namespace {

using worker::v1::AttachRequest;
using worker::v1::AttachResponse;

// Bytes of the message around the token ids: its tags and lengths.
constexpr int64_t kFramingBytes = 64;
// A token id is a varint of a non-negative int32.
constexpr int64_t kTokenBytesMax = 5;

}  // namespace

WorkerLinkService::WorkerLinkService(worker::v1::WorkerConfig config,
                                     PostEvent post)
    : config_(std::move(config)),
      config_digest_(ConfigDigest(config_)),
      post_(std::move(post)) {}

grpc::ServerBidiReactor<AttachRequest, AttachResponse>*
WorkerLinkService::Attach(grpc::CallbackServerContext* context) {
  std::shared_ptr<LinkStream> stream;
  {
    absl::MutexLock lock(&mutex_);
    stream = std::make_shared<LinkStream>(this, ++last_link_);
    streams_[last_link_] = stream;
  }
  stream->Start();
  return stream.get();
}

std::shared_ptr<LinkStream> WorkerLinkService::Find(LinkNumber link) {
  absl::MutexLock lock(&mutex_);
  const auto found = streams_.find(link);
  return found == streams_.end() ? nullptr : found->second;
}

void WorkerLinkService::Remove(LinkNumber link) {
  absl::MutexLock lock(&mutex_);
  streams_.erase(link);
}

void WorkerLinkService::Send(const SendConfigure& action) {
  const auto stream = Find(action.link);
  if (stream == nullptr) return;
  AttachResponse message;
  auto* configure = message.mutable_configure();
  configure->set_epoch(action.epoch);
  *configure->mutable_config() = config_;
  configure->set_config_digest(config_digest_);
  stream->Write(std::move(message));
}

void WorkerLinkService::Send(const SendAdmitted& action) {
  const auto stream = Find(action.link);
  if (stream == nullptr) return;
  AttachResponse message;
  message.mutable_admitted()->set_fingerprint(action.fingerprint);
  stream->Write(std::move(message));
}

void WorkerLinkService::Send(const SendRefused& action) {
  const auto stream = Find(action.link);
  if (stream == nullptr) return;
  AttachResponse message;
  message.mutable_refused()->set_reason(action.refusal.text);
  stream->Write(std::move(message));
  stream->Close(Error(absl::StatusCode::kFailedPrecondition,
                      action.refusal.error_reason, action.refusal.text),
                /*flush=*/true);
}

void WorkerLinkService::Send(const SendSubmit& action) {
  const auto stream = Find(action.link);
  if (stream == nullptr) return;
  const RequestSpec& spec = *action.request;
  std::vector<int32_t> tokens = spec.prompt;
  tokens.insert(tokens.end(), action.delivered.begin(), action.delivered.end());

  AttachResponse message;
  auto* submit = message.mutable_submit();
  *submit->mutable_key() = action.key;
  submit->set_total_tokens(static_cast<int32_t>(tokens.size()));
  submit->set_prompt_tokens(static_cast<int32_t>(spec.prompt.size()));
  submit->set_max_tokens(action.max_tokens);
  *submit->mutable_sampling() = spec.sampling;
  submit->mutable_sampling()->set_max_tokens(action.max_tokens);
  submit->mutable_sampling()->clear_stop_strings();
  submit->set_seed(AnswerSeed(spec.seed, action.index));
  submit->set_logprobs(spec.logprobs);
  submit->set_top_logprobs(spec.top_logprobs);
  submit->set_prompt_logprobs(action.prompt_logprobs);
  submit->set_traceparent(spec.traceparent);
  if (action.time_left.has_value()) {
    // 0 would mean no deadline.
    submit->set_deadline_ms(
        std::max<int64_t>(1, absl::ToInt64Milliseconds(*action.time_left)));
  }
  // The config's check of link_message_bytes leaves room for some.
  const size_t part_tokens = static_cast<size_t>(
      (config_.limits().link_message_bytes() - kFramingBytes -
       static_cast<int64_t>(message.ByteSizeLong())) /
      kTokenBytesMax);
  const size_t first = std::min(tokens.size(), part_tokens);
  submit->mutable_token_ids()->Assign(tokens.begin(), tokens.begin() + first);
  stream->Write(std::move(message));
  for (size_t at = first; at < tokens.size(); at += part_tokens) {
    const size_t end = std::min(tokens.size(), at + part_tokens);
    AttachResponse more;
    auto* part = more.mutable_submit_part();
    *part->mutable_key() = action.key;
    part->mutable_token_ids()->Assign(tokens.begin() + at,
                                      tokens.begin() + end);
    stream->Write(std::move(more));
  }
}

void WorkerLinkService::Send(const SendCancel& action) {
  if (const auto stream = Find(action.link)) stream->WriteCancel(action.key);
}

void WorkerLinkService::Send(const SendDrain& action) {
  const auto stream = Find(action.link);
  if (stream == nullptr) return;
  AttachResponse message;
  message.mutable_drain();
  stream->Write(std::move(message));
}

void WorkerLinkService::Send(const CloseLink& action) {
  if (const auto stream = Find(action.link)) {
    stream->Close(ToGrpcStatus(action.status, "LINK_CLOSED"), /*flush=*/false);
  }
}

}  // namespace invar::scheduler
