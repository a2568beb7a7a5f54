#include "worker/kv/block_pool.h"

#include <cstdio>
#include <cstdlib>

namespace invar {
namespace {

// A wrong account would let two sequences write to one block: better no answer
// than a wrong one.
void Assert(bool holds, const char* invariant) {
  if (holds) return;
  std::fprintf(stderr, "KV block accounts are broken: not so that %s\n",
               invariant);
  std::abort();
}

}  // namespace

BlockPool::BlockPool(int64_t blocks) : taken_(blocks, false) {
  free_.reserve(blocks);
  for (int64_t block = blocks - 1; block >= 0; --block) {
    free_.push_back(static_cast<int32_t>(block));
  }
}

bool BlockPool::Reserve(int64_t blocks) {
  Assert(blocks >= 0, "a reservation is not negative");
  if (reserved_ + blocks > total()) return false;
  reserved_ += blocks;
  AssertAccounts();
  return true;
}

int32_t BlockPool::Take() {
  Assert(used_ < reserved_, "a block taken was reserved");
  const int32_t block = free_.back();
  free_.pop_back();
  taken_[block] = true;
  ++used_;
  AssertAccounts();
  return block;
}

void BlockPool::Release(std::span<const int32_t> taken, int64_t reserved) {
  Assert(static_cast<int64_t>(taken.size()) <= reserved,
         "a sequence takes at most what it reserved");
  for (const int32_t block : taken) {
    Assert(block >= 0 && block < total() && taken_[block],
           "a block given back was taken");
    taken_[block] = false;
    free_.push_back(block);
  }
  used_ -= static_cast<int64_t>(taken.size());
  reserved_ -= reserved;
  AssertAccounts();
}

void BlockPool::AssertAccounts() const {
  Assert(static_cast<int64_t>(free_.size()) + used_ == total(),
         "free + used == total");
  Assert(used_ <= reserved_ && reserved_ <= total(),
         "used <= reserved <= total");
}

}  // namespace invar
