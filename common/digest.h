// SHA-256, in the form in which Invar writes it: 64 lower-case hex digits.
#ifndef INVAR_COMMON_DIGEST_H_
#define INVAR_COMMON_DIGEST_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/strings/string_view.h"

namespace invar {

// An incremental hash. Not thread-safe.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Update(absl::string_view bytes);
  // Ends the hash: 32 bytes. Neither method may be called again.
  std::string Digest();
  // Ends the hash: 64 hex digits. Neither method may be called again.
  std::string HexDigest();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

// The hash of one string.
std::string Sha256Hex(absl::string_view bytes);

// The hash of token ids as little-endian int32: a receipt's prompt_digest and
// output_digest.
std::string TokenDigest(std::span<const int32_t> token_ids);

}  // namespace invar

#endif  // INVAR_COMMON_DIGEST_H_
