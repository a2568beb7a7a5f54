#ifndef INVAR_SCHEDULER_TOKENIZER_STOP_MATCHER_H_
#define INVAR_SCHEDULER_TOKENIZER_STOP_MATCHER_H_

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace invar {

// Ends a text at the first stop string in it. That is the one whose last byte
// comes first; of several that end at the same byte, the longest. So the
// outcome depends on the text alone, never on the pieces in which it arrives.
// Text that could still become a stop string is held back, and only that.
// Given whole characters, it releases whole characters. Not thread-safe.
class StopMatcher {
 public:
  // `include_stop_text`: the stop string is part of the text released.
  // INVALID_ARGUMENT names an empty stop string by its index.
  static absl::StatusOr<StopMatcher> Create(std::vector<std::string> stops,
                                            bool include_stop_text);

  struct Release {
    std::string text;      // safe to send
    bool matched = false;  // a stop string ended the text, now or before
  };
  // After a match nothing more is released.
  Release Append(absl::string_view text);
  // No more text comes: what was held back, if nothing matched.
  Release Finish();

  // The index of the stop string that matched.
  std::optional<size_t> matched_stop() const { return matched_stop_; }

 private:
  struct Stop {
    std::string text;
    // borders[n]: the length of the longest proper prefix of the first n bytes
    // that is also their suffix (Knuth, Morris and Pratt).
    std::vector<size_t> borders;
    // How much of the stop string the text so far ends with.
    size_t progress = 0;
  };
  explicit StopMatcher(bool include_stop_text)
      : include_stop_text_(include_stop_text) {}
  static void Advance(Stop* stop, char byte);

  std::vector<Stop> stops_;
  bool include_stop_text_;
  std::string held_;
  std::optional<size_t> matched_stop_;
};

}  // namespace invar

#endif  // INVAR_SCHEDULER_TOKENIZER_STOP_MATCHER_H_
