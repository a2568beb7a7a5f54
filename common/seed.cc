#include "common/seed.h"

#include <bit>
#include <cstring>

#include "common/digest.h"

namespace invar {

static_assert(std::endian::native == std::endian::little,
              "the seeds' layouts are read and written in memory order");

uint64_t SeedFromRequestId(absl::string_view request_id) {
  Sha256 hash;
  hash.Update(request_id);
  const std::string digest = hash.Digest();
  uint64_t seed = 0;
  std::memcpy(&seed, digest.data(), sizeof(seed));
  return seed;
}

uint64_t AnswerSeed(uint64_t seed, int32_t index) {
  if (index == 0) return seed;
  char bytes[sizeof(seed) + sizeof(index)];
  std::memcpy(bytes, &seed, sizeof(seed));
  std::memcpy(bytes + sizeof(seed), &index, sizeof(index));
  return SeedFromRequestId({bytes, sizeof(bytes)});
}

}  // namespace invar
