// What one scheduler may submit.
#ifndef INVAR_WORKER_ENGINE_CREDITS_H_
#define INVAR_WORKER_ENGINE_CREDITS_H_

#include <algorithm>
#include <cstdint>

#include "invar/worker/v1/link.pb.h"
#include "kernels/types.h"
#include "worker/kv/block_pool.h"

namespace invar {

// Sequences and KV tokens, as an amount of either or a cumulative count.
struct CreditAmount {
  int64_t sequences = 0;
  int64_t kv_tokens = 0;

  void operator+=(const CreditAmount& other) {
    sequences += other.sequences;
    kv_tokens += other.kv_tokens;
  }
  bool Covers(const CreditAmount& other) const {
    return other.sequences <= sequences && other.kv_tokens <= kv_tokens;
  }
};

// What a submit costs: whole blocks for the tokens that it brings, not for
// those that it may write. A function of the message alone, so that both ends
// of the link agree, also on one that is malformed.
inline CreditAmount SubmitCost(const worker::v1::Submit& submit) {
  const int64_t tokens = std::max<int64_t>(0, submit.total_tokens());
  return {1, BlocksFor(tokens) * kBlockTokens};
}

// The share of scheduler `place` of `schedulers`: even, the remainder going to
// the first ones.
constexpr int64_t EvenShare(int64_t total, int place, int schedulers) {
  return total / schedulers + (place < total % schedulers ? 1 : 0);
}

// The two cumulative counts of link.proto's Credits, since one attach. Every
// submit is spent and, at its end, granted again, the rejected ones included.
class CreditLedger {
 public:
  explicit CreditLedger(const CreditAmount& share) : granted_(share) {}

  const CreditAmount& granted() const { return granted_; }

  // Counts a submit; false if it went beyond the grant.
  bool Spend(const CreditAmount& cost) {
    spent_ += cost;
    return granted_.Covers(spent_);
  }
  void GrantAgain(const CreditAmount& cost) { granted_ += cost; }

 private:
  CreditAmount granted_;
  CreditAmount spent_;
};

}  // namespace invar

#endif  // INVAR_WORKER_ENGINE_CREDITS_H_
