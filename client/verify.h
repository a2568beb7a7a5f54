// Has recorded answers written again, and says whether they are the same.
#ifndef INVAR_CLIENT_VERIFY_H_
#define INVAR_CLIENT_VERIFY_H_

#include <functional>
#include <string>
#include <vector>

#include "client/client.h"
#include "client/request_pool.h"
#include "invar/v1/record.pb.h"

namespace invar {

struct Verdict {
  // kCannotTell: no server that could write the answer again did.
  enum class Kind { kIdentical, kDiffers, kCannotTell };
  Kind kind = Kind::kIdentical;
  // What differs, or why nobody can tell: one line. Empty if identical.
  std::string detail;
};

// The request that has a record's answer written again: by the same
// fingerprint, under an id of its own, with log-probabilities, so that a
// difference can show them.
v1::GenerateRequest ReplayRequest(const v1::GenerationRecord& record);

// What a record says of itself that cannot be: numerics that do not give its
// fingerprint. kIdentical: nothing.
Verdict CheckNumerics(const v1::GenerationRecord& record);

// The same for tokens that do not give their receipt's digest; told where there
// is no replay, which says more.
Verdict CheckDigests(const v1::GenerationRecord& record);

// A record against what ReplayRequest was answered. In this order: what the
// receipts say of the request; the first position with another token or
// log-probability; any other field, but for usage.cached_tokens.
Verdict CompareReplay(const v1::GenerationRecord& record,
                      v1::GenerateOnceResponse replayed);

// Verifies all records, options.concurrency at once, and calls on_verdict for
// each on this thread, in the order in which they end.
void VerifyRecords(
    Client& client, const std::vector<v1::GenerationRecord>& records,
    PoolOptions options,
    const std::function<void(size_t, const Verdict&)>& on_verdict);

}  // namespace invar

#endif  // INVAR_CLIENT_VERIFY_H_
