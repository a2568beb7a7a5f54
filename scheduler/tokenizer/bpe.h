#ifndef INVAR_SCHEDULER_TOKENIZER_BPE_H_
#define INVAR_SCHEDULER_TOKENIZER_BPE_H_

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "scheduler/tokenizer/json_node.h"

namespace invar {

// Byte-level byte-pair encoding: the "BPE" model of tokenizer.json. A piece
// begins as one token a byte; the adjacent pair whose merge ranks first is
// joined, the leftmost of equals, until no pair has a merge.
// Immutable after Parse.
class Bpe {
 public:
  // Vocabulary entries as the file writes them, with their ids.
  using Vocabulary = absl::flat_hash_map<std::string, int32_t>;

  // Also gives the file's vocabulary, which only loading needs.
  static absl::StatusOr<Bpe> Parse(const JsonNode& node,
                                   Vocabulary* vocabulary);

  // Appends the ids of a piece: O(n log n) in its bytes, at most 2^31 - 1.
  // Returns how many pairs it looked at, which are at most 3 a byte.
  int64_t Encode(absl::string_view piece, std::vector<int32_t>* ids) const;

 private:
  struct Merge {
    int32_t rank;
    int32_t id;  // of the joined token
  };
  struct Symbol;
  struct Candidate;

  absl::Status ParseOptions(const JsonNode& node);
  absl::Status ParseVocabulary(const JsonNode& node, Vocabulary* vocabulary);
  absl::Status ParseMerges(const JsonNode& node, const Vocabulary& vocabulary);
  const Merge* FindMerge(int32_t left, int32_t right) const;

  std::array<int32_t, 256> byte_ids_;
  absl::flat_hash_map<std::pair<int32_t, int32_t>, Merge> merges_;
  // A piece that is itself an entry is that token, whatever the merges say.
  bool ignore_merges_ = false;
  absl::flat_hash_map<std::string, int32_t> whole_pieces_;
};

}  // namespace invar

#endif  // INVAR_SCHEDULER_TOKENIZER_BPE_H_
