#include "worker/model/checkpoint/tensor_digest.h"

#include <cpuid.h>
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/escaping.h"

namespace invar {
namespace {

using State = std::array<uint32_t, 8>;

// FIPS 180-4: the first 32 bits of the square roots of the first 8 primes'
// fractions, and of the cube roots of the first 64's.
constexpr State kInitial = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                            0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
alignas(16) constexpr std::array<uint32_t, 64> kRounds = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
    0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
    0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
    0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
    0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

// `blocks` blocks of each of kHashes hashes. The state's words a, b, e, f and
// c, d, g, h are what the instructions take: two rounds make new a, b, e, f of
// both, and the old ones are then c, d, g, h.
template <size_t kHashes>
[[gnu::target("sha,ssse3,sse4.1")]] void HashBlocks(
    const std::array<State*, kHashes>& states,
    const std::array<const char*, kHashes>& data, size_t blocks) {
  const __m128i big_endian =
      _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  __m128i abef[kHashes], cdgh[kHashes];
  for (size_t i = 0; i < kHashes; ++i) {
    const auto* words = reinterpret_cast<const __m128i*>(states[i]->data());
    const __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128(words), 0xb1);
    const __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128(words + 1), 0x1b);
    abef[i] = _mm_alignr_epi8(cdab, efgh, 8);
    cdgh[i] = _mm_blend_epi16(efgh, cdab, 0xf0);
  }
  for (size_t block = 0; block < blocks; ++block) {
    __m128i abef_before[kHashes], cdgh_before[kHashes];
    std::copy_n(abef, kHashes, abef_before);
    std::copy_n(cdgh, kHashes, cdgh_before);
    __m128i last[kHashes][4];  // 16 words of the schedule
#pragma GCC unroll 16
    for (size_t quad = 0; quad < 16; ++quad) {
      const __m128i constants = _mm_load_si128(
          reinterpret_cast<const __m128i*>(kRounds.data()) + quad);
      for (size_t i = 0; i < kHashes; ++i) {
        __m128i& words = last[i][quad % 4];
        if (quad < 4) {
          const char* from = data[i] + 64 * block + 16 * quad;
          words = _mm_shuffle_epi8(
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)),
              big_endian);
        } else {
          const __m128i before = last[i][(quad + 3) % 4];
          words = _mm_sha256msg1_epu32(words, last[i][(quad + 1) % 4]);
          words = _mm_add_epi32(
              words, _mm_alignr_epi8(before, last[i][(quad + 2) % 4], 4));
          words = _mm_sha256msg2_epu32(words, before);
        }
        const __m128i sum = _mm_add_epi32(words, constants);
        cdgh[i] = _mm_sha256rnds2_epu32(cdgh[i], abef[i], sum);
        abef[i] = _mm_sha256rnds2_epu32(abef[i], cdgh[i],
                                        _mm_shuffle_epi32(sum, 0x0e));
      }
    }
    for (size_t i = 0; i < kHashes; ++i) {
      abef[i] = _mm_add_epi32(abef[i], abef_before[i]);
      cdgh[i] = _mm_add_epi32(cdgh[i], cdgh_before[i]);
    }
  }
  for (size_t i = 0; i < kHashes; ++i) {
    auto* words = reinterpret_cast<__m128i*>(states[i]->data());
    const __m128i feba = _mm_shuffle_epi32(abef[i], 0x1b);
    const __m128i dchg = _mm_shuffle_epi32(cdgh[i], 0xb1);
    _mm_storeu_si128(words, _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128(words + 1, _mm_alignr_epi8(dchg, feba, 8));
  }
}

}  // namespace

bool TensorDigest::HasInstructions() {
  static const bool has = [] {
    unsigned a, b, c, d;
    const bool sse = __get_cpuid(1, &a, &b, &c, &d) != 0 &&
                     (c & bit_SSSE3) != 0 && (c & bit_SSE4_1) != 0;
    return sse && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 &&
           (b & bit_SHA) != 0;
  }();
  return has;
}

TensorDigest::TensorDigest(bool instructions) : state_(kInitial) {
  if (!instructions) openssl_.emplace();
}

absl::string_view TensorDigest::Begin(absl::string_view bytes) {
  bytes_ += bytes.size();
  if (in_block_ == 0) return bytes;
  const size_t taken = std::min(kBlock - in_block_, bytes.size());
  std::copy_n(bytes.data(), taken, block_.data() + in_block_);
  in_block_ += taken;
  if (in_block_ == kBlock) {
    HashBlocks<1>({&state_}, {block_.data()}, 1);
    in_block_ = 0;
  }
  return bytes.substr(taken);
}

void TensorDigest::End(absl::string_view bytes) {
  if (bytes.empty()) return;  // a block may have begun, and go on
  HashBlocks<1>({&state_}, {bytes.data()}, bytes.size() / kBlock);
  in_block_ = bytes.size() % kBlock;
  std::copy_n(bytes.end() - in_block_, in_block_, block_.data());
}

void TensorDigest::Update(absl::string_view bytes) {
  if (openssl_.has_value()) return openssl_->Update(bytes);
  End(Begin(bytes));
}

void TensorDigest::UpdateBoth(TensorDigest& a, absl::string_view bytes_a,
                              TensorDigest& b, absl::string_view bytes_b) {
  if (a.openssl_.has_value() || b.openssl_.has_value()) {
    a.Update(bytes_a);
    b.Update(bytes_b);
    return;
  }
  bytes_a = a.Begin(bytes_a);
  bytes_b = b.Begin(bytes_b);
  const size_t blocks = std::min(bytes_a.size(), bytes_b.size()) / kBlock;
  HashBlocks<2>({&a.state_, &b.state_}, {bytes_a.data(), bytes_b.data()},
                blocks);
  a.End(bytes_a.substr(blocks * kBlock));
  b.End(bytes_b.substr(blocks * kBlock));
}

std::string TensorDigest::HexDigest() {
  if (openssl_.has_value()) return openssl_->HexDigest();
  // A bit, zeros, and the length in bits.
  std::array<char, 2 * kBlock> padding = {'\x80'};
  const size_t size =
      (in_block_ + 1 + 8 <= kBlock ? kBlock : 2 * kBlock) - in_block_;
  const uint64_t bits = __builtin_bswap64(8 * bytes_);
  std::memcpy(padding.data() + size - sizeof(bits), &bits, sizeof(bits));
  Update({padding.data(), size});
  std::string digest;
  for (const uint32_t word : state_) {
    const uint32_t big_endian = __builtin_bswap32(word);
    digest.append(reinterpret_cast<const char*>(&big_endian),
                  sizeof(big_endian));
  }
  return absl::BytesToHexString(digest);
}

}  // namespace invar
