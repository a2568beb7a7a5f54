// Hands out the blocks of the KV cache.
//
// A sequence reserves its worst case before it starts, so that a sequence that
// runs never waits for a block; it takes blocks from its reservation as it
// grows. Which block a sequence gets never shows in its bits.
#ifndef INVAR_WORKER_KV_BLOCK_POOL_H_
#define INVAR_WORKER_KV_BLOCK_POOL_H_

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/types.h"

namespace invar {

// Blocks that hold `tokens` tokens.
constexpr int64_t BlocksFor(int64_t tokens) {
  return (tokens + kBlockTokens - 1) / kBlockTokens;
}

// Not thread-safe: the engine's. Asserted after every call, also in release
// builds: free + used == total, used <= reserved <= total, and no block is
// given back that was not taken.
class BlockPool {
 public:
  explicit BlockPool(int64_t blocks);
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  int64_t total() const { return static_cast<int64_t>(taken_.size()); }
  int64_t used() const { return used_; }
  int64_t reserved() const { return reserved_; }

  // Sets `blocks` aside; false, and nothing happens, if fewer are left.
  bool Reserve(int64_t blocks);

  // A block of a reservation that is not used up.
  int32_t Take();

  // Ends a reservation of `reserved` blocks, of which `taken` were taken.
  void Release(std::span<const int32_t> taken, int64_t reserved);

 private:
  void AssertAccounts() const;

  std::vector<int32_t> free_;
  std::vector<bool> taken_;  // by block
  int64_t used_ = 0;
  int64_t reserved_ = 0;
};

}  // namespace invar

#endif  // INVAR_WORKER_KV_BLOCK_POOL_H_
