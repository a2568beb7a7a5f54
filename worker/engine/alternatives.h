// The likeliest tokens at a position, for top_logprobs.
#ifndef INVAR_WORKER_ENGINE_ALTERNATIVES_H_
#define INVAR_WORKER_ENGINE_ALTERNATIVES_H_

#include <cstdint>
#include <span>

#include "invar/worker/v1/link.pb.h"

namespace invar {

// The `count` best ids below `limit` by (logit descending, id ascending), with
// their log-probabilities of the raw logits.
worker::v1::Alternatives LikeliestTokens(std::span<const float> logits,
                                         int64_t limit, double log_sum_exp,
                                         int64_t count);

}  // namespace invar

#endif  // INVAR_WORKER_ENGINE_ALTERNATIVES_H_
