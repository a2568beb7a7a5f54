#include "worker/kv/prefix_cache.h"

#include <algorithm>
#include <utility>

#include "common/digest.h"

namespace invar {

std::string PrefixCache::ChainName(absl::string_view parent,
                                   std::span<const int32_t> token_ids) {
  Sha256 hash;
  hash.Update(parent);
  hash.Update({reinterpret_cast<const char*>(token_ids.data()),
               token_ids.size_bytes()});
  return hash.Digest();
}

int32_t PrefixCache::Find(int32_t parent,
                          std::span<const int32_t> token_ids) const {
  const auto found = blocks_.find(NameAfter(parent, token_ids));
  if (found == blocks_.end()) return kNoBlock;
  return Holds(found->second, parent, token_ids) ? found->second : kNoBlock;
}

int32_t PrefixCache::Add(int32_t block, int32_t parent,
                         std::span<const int32_t> token_ids) {
  std::string name = NameAfter(parent, token_ids);
  const auto [at, added] = blocks_.emplace(name, block);
  if (!added) {
    return Holds(at->second, parent, token_ids) ? at->second : kNoBlock;
  }
  Entry& entry = entries_[block];
  entry.name = std::move(name);
  entry.parent = parent;
  entry.token_ids.assign(token_ids.begin(), token_ids.end());
  return block;
}

void PrefixCache::Park(int32_t block) {
  entries_[block].place = parked_.insert(parked_.end(), block);
}

void PrefixCache::Unpark(int32_t block) {
  parked_.erase(entries_[block].place);
}

int32_t PrefixCache::EvictOldest() {
  const int32_t block = parked_.front();
  parked_.pop_front();
  blocks_.erase(entries_[block].name);
  entries_[block] = Entry();
  return block;
}

std::string PrefixCache::NameAfter(int32_t parent,
                                   std::span<const int32_t> token_ids) const {
  return name_(parent == kNoBlock ? "" : entries_[parent].name, token_ids);
}

bool PrefixCache::Holds(int32_t block, int32_t parent,
                        std::span<const int32_t> token_ids) const {
  const Entry& entry = entries_[block];
  return entry.parent == parent &&
         std::equal(token_ids.begin(), token_ids.end(), entry.token_ids.begin(),
                    entry.token_ids.end());
}

}  // namespace invar
