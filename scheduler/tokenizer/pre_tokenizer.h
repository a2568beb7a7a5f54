#ifndef INVAR_SCHEDULER_TOKENIZER_PRE_TOKENIZER_H_
#define INVAR_SCHEDULER_TOKENIZER_PRE_TOKENIZER_H_

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "scheduler/tokenizer/json_node.h"
#include "scheduler/tokenizer/regex.h"

namespace invar {

// The pieces of a text, in order; BPE never merges across two of them. Most
// are views into the text; those that gained a space in front lie in `owned`.
struct Pieces {
  std::vector<absl::string_view> views;
  std::deque<std::string> owned;
};

// The pre_tokenizer of tokenizer.json: Sequence, Split, Digits and, last,
// ByteLevel. Each step is applied to the pieces that the one before left.
// Immutable after Parse.
class PreTokenizer {
 public:
  static absl::StatusOr<PreTokenizer> Parse(const JsonNode& node);

  // `text` must be valid UTF-8 and outlive the pieces.
  absl::StatusOr<Pieces> Run(absl::string_view text,
                             RegexScratch* scratch) const;

 private:
  // What becomes of a match and of what stands between matches.
  enum class Behavior {
    kIsolated,            // each match and each gap is a piece
    kRemoved,             // matches are dropped
    kMergedWithPrevious,  // a match ends the piece before it
    kMergedWithNext,      // a match begins the piece after it
    kContiguous,          // neighbouring matches are one piece
  };
  struct Step {
    bool prefix_space = false;  // to a piece that does not begin with one
    std::optional<Regex> regex;
    std::string literal;  // searched for where there is no regex
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;  // matches and gaps change places
    bool splits() const { return regex.has_value() || !literal.empty(); }
  };
  // A stretch of a piece: a match, or what stands between matches.
  struct Stretch {
    Span span;
    bool is_match;
  };

  absl::Status ParseNode(const JsonNode& node);
  absl::Status ParseSplit(const JsonNode& node);
  absl::Status ParseDigits(const JsonNode& node);
  absl::Status ParseByteLevel(const JsonNode& node);

  static absl::StatusOr<std::optional<Span>> Find(const Step& step,
                                                  absl::string_view piece,
                                                  size_t start,
                                                  RegexScratch* scratch);
  static absl::Status Divide(const Step& step, absl::string_view piece,
                             RegexScratch* scratch,
                             std::vector<Stretch>* stretches);
  static void AppendPieces(const Step& step, absl::string_view piece,
                           const std::vector<Stretch>& stretches,
                           std::vector<absl::string_view>* pieces);

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace invar

#endif  // INVAR_SCHEDULER_TOKENIZER_PRE_TOKENIZER_H_
