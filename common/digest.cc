#include "common/digest.h"

#include <openssl/evp.h>

#include <bit>
#include <cstdlib>

#include "absl/strings/escaping.h"

namespace invar {

static_assert(std::endian::native == std::endian::little,
              "TokenDigest reads int32 in memory order");

struct Sha256::Context {
  Context() : evp(EVP_MD_CTX_new()) {}
  ~Context() { EVP_MD_CTX_free(evp); }
  EVP_MD_CTX* evp;
};

// OpenSSL fails here only without memory or without SHA-256 at all; neither
// leaves anything sensible to do.
Sha256::Sha256() : context_(std::make_unique<Context>()) {
  if (EVP_DigestInit_ex(context_->evp, EVP_sha256(), nullptr) != 1) abort();
}

Sha256::~Sha256() = default;

void Sha256::Update(absl::string_view bytes) {
  if (EVP_DigestUpdate(context_->evp, bytes.data(), bytes.size()) != 1) abort();
}

std::string Sha256::Digest() {
  std::string digest(EVP_MAX_MD_SIZE, '\0');
  unsigned int size = 0;
  if (EVP_DigestFinal_ex(context_->evp,
                         reinterpret_cast<unsigned char*>(digest.data()),
                         &size) != 1) {
    abort();
  }
  digest.resize(size);
  return digest;
}

std::string Sha256::HexDigest() { return absl::BytesToHexString(Digest()); }

std::string Sha256Hex(absl::string_view bytes) {
  Sha256 hash;
  hash.Update(bytes);
  return hash.HexDigest();
}

std::string TokenDigest(std::span<const int32_t> token_ids) {
  return Sha256Hex({reinterpret_cast<const char*>(token_ids.data()),
                    token_ids.size_bytes()});
}

}  // namespace invar
