// Which blocks of the KV cache hold which text.
//
// A block is named by the SHA-256 of its parent's name and its own token ids,
// so that a name stands for the whole text up to the block's end. A hash is no
// proof: a hit also compares the ids and the parent, and by induction the text.
#ifndef INVAR_WORKER_KV_PREFIX_CACHE_H_
#define INVAR_WORKER_KV_PREFIX_CACHE_H_

#include <cstdint>
#include <functional>
#include <list>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace invar {

// No block: the parent of a text's first one.
inline constexpr int32_t kNoBlock = -1;

// An index over blocks that BlockPool owns; it counts no references. A block
// leaves before its parent does, because whoever refers to one refers to the
// other, and Park gets children first. Not thread-safe: the engine's.
class PrefixCache {
 public:
  // The name of a block, from its parent's name (empty: none) and its ids.
  using NameFunction =
      std::function<std::string(absl::string_view, std::span<const int32_t>)>;
  static std::string ChainName(absl::string_view parent,
                               std::span<const int32_t> token_ids);

  // `name`: another function only in tests of collisions.
  explicit PrefixCache(int64_t blocks, NameFunction name = ChainName)
      : name_(std::move(name)), entries_(blocks) {}

  // The block that holds `token_ids` after the text of `parent`, or kNoBlock.
  int32_t Find(int32_t parent, std::span<const int32_t> token_ids) const;

  // Adds `block`. Returns the block that stands for this text: `block`, one
  // that was there before, or kNoBlock if another text has the name.
  int32_t Add(int32_t block, int32_t parent,
              std::span<const int32_t> token_ids);

  bool contains(int32_t block) const { return !entries_[block].name.empty(); }

  // A block that nobody refers to any more is parked until somebody does again
  // or until it is the one parked longest and its room is needed.
  void Park(int32_t block);
  void Unpark(int32_t block);
  int64_t parked() const { return static_cast<int64_t>(parked_.size()); }
  // Forgets and returns the block parked longest; there must be one.
  int32_t EvictOldest();

 private:
  struct Entry {
    std::string name;  // empty: not in the cache
    int32_t parent = kNoBlock;
    std::vector<int32_t> token_ids;
    std::list<int32_t>::iterator place;  // in parked_, while it is there
  };

  std::string NameAfter(int32_t parent,
                        std::span<const int32_t> token_ids) const;
  bool Holds(int32_t block, int32_t parent,
             std::span<const int32_t> token_ids) const;

  const NameFunction name_;
  std::vector<Entry> entries_;                       // by block
  std::unordered_map<std::string, int32_t> blocks_;  // by name
  std::list<int32_t> parked_;                        // the oldest first
};

}  // namespace invar

#endif  // INVAR_WORKER_KV_PREFIX_CACHE_H_
