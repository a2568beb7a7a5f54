#ifndef INVAR_WORKER_MODEL_CHECKPOINT_TENSOR_DIGEST_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_TENSOR_DIGEST_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "common/digest.h"

namespace invar {

// SHA-256 of bytes that come in parts. Two of them can go on at once on one
// core: the processor's instruction for it waits for the one before, while that
// of another hash could have begun. On a Zen 4 core 1.83 GB/s alone, 3.48 GB/s
// both.
class TensorDigest {
 public:
  // Whether the processor has instructions for SHA-256.
  static bool HasInstructions();

  // Without them it is OpenSSL's, one after the other.
  explicit TensorDigest(bool instructions = HasInstructions());

  void Update(absl::string_view bytes);
  // a.Update(bytes_a) and b.Update(bytes_b), fastest if they are as long.
  static void UpdateBoth(TensorDigest& a, absl::string_view bytes_a,
                         TensorDigest& b, absl::string_view bytes_b);
  // Ends the hash: 64 hex digits. No method may be called again.
  std::string HexDigest();

 private:
  static constexpr size_t kBlock = 64;

  // What completes a block that has begun; returns the rest.
  absl::string_view Begin(absl::string_view bytes);
  // Whole blocks, and what begins the next one.
  void End(absl::string_view bytes);

  std::optional<Sha256> openssl_;
  std::array<uint32_t, 8> state_;
  std::array<char, kBlock> block_;
  size_t in_block_ = 0;
  uint64_t bytes_ = 0;
};

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_TENSOR_DIGEST_H_
