// The fingerprint: one hash over everything that fixes an answer's bits.
#ifndef INVAR_COMMON_NUMERICS_H_
#define INVAR_COMMON_NUMERICS_H_

#include <string>

#include "absl/strings/string_view.h"
#include "invar/v1/numerics.pb.h"

namespace invar {

// The text that is hashed, one "name=value" a line:
//
//   invar.numerics=1
//   plan.NAME=VALUE            for each entry, in order
//   weights_digest=...
//   kernel_build_id=...
//   architecture=...
//   tokenizer_digest=...
//
// Line feeds and backslashes in values are written \n and \\, so that no two
// numerics render alike.
std::string CanonicalRendering(const v1::Numerics& numerics);

// SHA-256 (hex) of the rendering. Ignores numerics.fingerprint.
std::string Fingerprint(const v1::Numerics& numerics);

// The value of a plan's entry; empty: it has none of that name.
std::string PlanEntry(const v1::Numerics& numerics, absl::string_view name);

// Names the first line that differs, with both values: for example
// "plan.attention.split_tokens: 256 against 512". Empty: none does.
std::string FirstDifference(const v1::Numerics& ours,
                            const v1::Numerics& theirs);

}  // namespace invar

#endif  // INVAR_COMMON_NUMERICS_H_
