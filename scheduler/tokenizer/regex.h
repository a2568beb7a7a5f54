#ifndef INVAR_SCHEDULER_TOKENIZER_REGEX_H_
#define INVAR_SCHEDULER_TOKENIZER_REGEX_H_

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstddef>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace invar {

// A half-open range of bytes.
struct Span {
  size_t begin;
  size_t end;
  bool empty() const { return begin == end; }
};

// What one thread needs while it matches; any Regex can use it.
class RegexScratch {
 public:
  RegexScratch();

 private:
  friend class Regex;
  template <auto kFree>
  struct Free {
    template <typename T>
    void operator()(T* object) const {
      kFree(object);
    }
  };
  std::unique_ptr<pcre2_match_data, Free<pcre2_match_data_free>> match_;
  std::unique_ptr<pcre2_match_context, Free<pcre2_match_context_free>> context_;
  std::unique_ptr<pcre2_jit_stack, Free<pcre2_jit_stack_free>> jit_stack_;
};

// An Oniguruma pattern, run by PCRE2. Immutable: many threads may match at
// once, each with its own scratch.
class Regex {
 public:
  static absl::StatusOr<Regex> Compile(absl::string_view oniguruma_pattern);

  // The first match that begins at `start` or later. `text` must be valid
  // UTF-8 and `start` the beginning of a character. RESOURCE_EXHAUSTED when
  // the match needs more steps or memory than any sane pattern does.
  absl::StatusOr<std::optional<Span>> Find(absl::string_view text, size_t start,
                                           RegexScratch* scratch) const;

 private:
  struct FreeCode {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  };
  std::unique_ptr<pcre2_code, FreeCode> code_;
};

}  // namespace invar

#endif  // INVAR_SCHEDULER_TOKENIZER_REGEX_H_
