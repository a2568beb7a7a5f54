// The seeds that the service derives, so that anyone can derive them again.
#ifndef INVAR_COMMON_SEED_H_
#define INVAR_COMMON_SEED_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace invar {

// The seed of a request that names none: the first 8 bytes, little-endian, of
// the SHA-256 of its request_id.
uint64_t SeedFromRequestId(absl::string_view request_id);

// The seed of answer `index` of a request with `seed`: `seed` itself for index
// 0, else the first 8 bytes, little-endian, of the SHA-256 over 12 bytes: the
// seed as 8 little-endian bytes, the index as 4.
uint64_t AnswerSeed(uint64_t seed, int32_t index);

}  // namespace invar

#endif  // INVAR_COMMON_SEED_H_
