// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw
// ("Parallel random numbers: as easy as 1, 2, 3", 2011): a draw is a pure
// function of its key and counter, so it needs no state that could be lost.
#ifndef INVAR_KERNELS_CPU_PHILOX_H_
#define INVAR_KERNELS_CPU_PHILOX_H_

#include <array>
#include <cstdint>

namespace invar::cpu {

inline std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                          std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

// Sixty-four bits for (seed, position): words 0 (low) and 1 (high) of the draw
// with key `seed`, low half first, and counter (position low, high, 0, 0).
inline uint64_t Philox64(uint64_t seed, uint64_t position) {
  const std::array<uint32_t, 4> words = Philox4x32(
      {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
       0, 0},
      {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return uint64_t{words[1]} << 32 | words[0];
}

}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_PHILOX_H_
