#ifndef INVAR_SCHEDULER_TOKENIZER_ADDED_TOKENS_H_
#define INVAR_SCHEDULER_TOKENIZER_ADDED_TOKENS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "scheduler/tokenizer/json_node.h"

namespace invar {

// An entry of added_tokens in tokenizer.json: a token found in the text
// itself, before any pre-tokenizer.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;      // a control token, not text
  bool normalized = false;   // looked for after the others
  bool left_strip = false;   // takes in the spaces before it
  bool right_strip = false;  // takes in the spaces after it
};

absl::StatusOr<std::vector<AddedToken>> ParseAddedTokens(const JsonNode& node);

// Finds added tokens in text: the leftmost, and of those the longest. Keeps
// the order of two passes that the reference has: tokens that are not
// `normalized` first, the others in what is left. Immutable.
class AddedTokenMatcher {
 public:
  struct Segment {
    absl::string_view text;     // of an ordinary stretch
    std::optional<int32_t> id;  // of an added token
  };

  explicit AddedTokenMatcher(const std::vector<AddedToken>& tokens);

  // Valid UTF-8 cut into added tokens and what lies between. Without
  // `parse_special`, special tokens are ordinary text.
  std::vector<Segment> Split(absl::string_view text, bool parse_special) const;

 private:
  // Tokens of one pass, in a trie over bytes.
  struct Pass {
    std::vector<AddedToken> tokens;
    absl::flat_hash_map<std::pair<int32_t, uint8_t>, int32_t> children;
    std::vector<int32_t> token_at;  // by trie node; -1: none ends here

    void Add(const AddedToken& token);
    // The longest token that begins at `at`.
    const AddedToken* Longest(absl::string_view text, size_t at) const;
    void Split(absl::string_view text, bool parse_special,
               std::vector<Segment>* segments) const;
  };

  Pass first_;
  Pass normalized_;
};

}  // namespace invar

#endif  // INVAR_SCHEDULER_TOKENIZER_ADDED_TOKENS_H_
