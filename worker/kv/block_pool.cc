#include "worker/kv/block_pool.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

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

BlockPool::BlockPool(int64_t blocks, PrefixCache::NameFunction name)
    : references_(blocks, 0), prefixes_(blocks, std::move(name)) {
  free_.reserve(blocks);
  for (int64_t block = blocks - 1; block >= 0; --block) {
    free_.push_back(static_cast<int32_t>(block));
  }
}

int32_t BlockPool::Take() {
  Assert(available() > 0, "a block is taken where one is available");
  if (free_.empty()) free_.push_back(prefixes_.EvictOldest());
  const int32_t block = free_.back();
  free_.pop_back();
  AddReference(block);
  AssertAccounts();
  return block;
}

std::vector<int32_t> BlockPool::TakePrefix(std::span<const int32_t> token_ids) {
  const size_t most = (token_ids.size() - 1) / kBlockTokens;
  std::vector<int32_t> taken;
  while (taken.size() < most) {
    const int32_t parent = taken.empty() ? kNoBlock : taken.back();
    const int32_t block = prefixes_.Find(
        parent, token_ids.subspan(taken.size() * kBlockTokens, kBlockTokens));
    if (block == kNoBlock) break;
    if (references_[block] == 0) prefixes_.Unpark(block);
    AddReference(block);
    taken.push_back(block);
  }
  AssertAccounts();
  return taken;
}

int32_t BlockPool::Share(int32_t block, int32_t parent,
                         std::span<const int32_t> token_ids) {
  Assert(token_ids.size() == kBlockTokens, "a shared block is full");
  AssertWritable(block);
  Assert(parent == kNoBlock ||
             (prefixes_.contains(parent) && references_[parent] > 0),
         "a shared block follows one that its sequence refers to");
  const int32_t shared = prefixes_.Add(block, parent, token_ids);
  if (shared != kNoBlock && shared != block) {
    if (references_[shared] == 0) prefixes_.Unpark(shared);
    AddReference(shared);
    DropReference(block);
  }
  AssertAccounts();
  return shared;
}

void BlockPool::AssertWritable(int32_t block) const {
  Assert(references_[block] == 1 && !prefixes_.contains(block),
         "a block is written before it is shared");
}

void BlockPool::Release(std::span<const int32_t> taken) {
  // Backwards: the end of a text is evicted before its beginning.
  for (size_t i = taken.size(); i-- > 0;) DropReference(taken[i]);
  AssertAccounts();
}

void BlockPool::AddReference(int32_t block) {
  if (references_[block]++ == 0) ++used_;
  ++all_references_;
}

void BlockPool::DropReference(int32_t block) {
  Assert(block >= 0 && block < total() && references_[block] > 0,
         "a block given back was taken");
  --all_references_;
  if (--references_[block] > 0) return;
  --used_;
  if (prefixes_.contains(block)) {
    prefixes_.Park(block);
  } else {
    free_.push_back(block);
  }
}

void BlockPool::AssertAccounts() const {
  Assert(static_cast<int64_t>(free_.size()) + used_ + cached() == total(),
         "free + used + cached == total");
  Assert(used_ <= all_references_, "used <= references");
}

}  // namespace invar
