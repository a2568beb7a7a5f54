// Hands out the blocks of the KV cache, new ones and those that hold a text's
// beginning already.
//
// A sequence takes blocks as it grows; who gives way when none is left is the
// Batcher's business. A block that it wrote in full can be shared; it then
// stays after its last reader, until its room is needed. Which block a sequence
// gets never shows in its bits.
#ifndef INVAR_WORKER_KV_BLOCK_POOL_H_
#define INVAR_WORKER_KV_BLOCK_POOL_H_

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/types.h"
#include "worker/kv/prefix_cache.h"

namespace invar {

// Blocks that hold `tokens` tokens.
constexpr int64_t BlocksFor(int64_t tokens) {
  return (tokens + kBlockTokens - 1) / kBlockTokens;
}

// Not thread-safe: the engine's. Asserted after every call, also in release
// builds: free + used + cached == total, used <= references, and no block is
// given back that was not taken. A block is used while a sequence refers to it,
// and cached while none does and it holds a text.
class BlockPool {
 public:
  explicit BlockPool(int64_t blocks,
                     PrefixCache::NameFunction name = PrefixCache::ChainName);
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  int64_t total() const { return static_cast<int64_t>(references_.size()); }
  int64_t used() const { return used_; }
  int64_t cached() const { return prefixes_.parked(); }
  // Blocks to take now: cached ones give way on demand.
  int64_t available() const {
    return static_cast<int64_t>(free_.size()) + cached();
  }

  // A block to write to; there must be one available.
  int32_t Take();

  // Takes the shared blocks that `token_ids` begins with, in order. They end
  // before the block of the last token, so that its logits are always computed.
  std::vector<int32_t> TakePrefix(std::span<const int32_t> token_ids);

  // Shares a taken block that holds `token_ids`, a whole block of them, after
  // the text of the shared block `parent` (kNoBlock: of nothing). Returns the
  // block that the caller holds from now on: another one of the same text, if
  // there is one, for which `block` was given back. kNoBlock: the name belongs
  // to another text; the caller keeps its block and shares none behind it.
  int32_t Share(int32_t block, int32_t parent,
                std::span<const int32_t> token_ids);

  // Aborts unless one sequence alone refers to the block and it is not shared.
  void AssertWritable(int32_t block) const;

  // Gives a sequence's blocks back; `taken` is in the order of its text.
  void Release(std::span<const int32_t> taken);

 private:
  void AddReference(int32_t block);
  void DropReference(int32_t block);
  void AssertAccounts() const;

  std::vector<int32_t> free_;
  std::vector<int32_t> references_;  // by block
  PrefixCache prefixes_;
  int64_t used_ = 0;
  int64_t all_references_ = 0;
};

}  // namespace invar

#endif  // INVAR_WORKER_KV_BLOCK_POOL_H_
