#ifndef INVAR_SCHEDULER_TOKENIZER_ONIGURUMA_PATTERN_H_
#define INVAR_SCHEDULER_TOKENIZER_ONIGURUMA_PATTERN_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace invar {

// The patterns of tokenizer.json are written for Oniguruma in its Ruby
// syntax; PCRE2 runs ours. This rewrites one for PCRE2 compiled with UTF, UCP,
// MULTILINE and newline = LF, so that both find the same matches. What the two
// read differently is spelled out:
//
//   ^ $     at every line, newline is \n alone (MULTILINE does the same)
//   \s      the 25 characters of White_Space (PCRE2's own adds U+180E)
//   \w      Alphabetic, marks, decimal digits, connectors; outside brackets
//           also the six superscripts and fractions of Latin-1
//   \p{X}   a script means the script, not its extensions
//   C+$     for a single class C: a look-behind keeps the search linear
//
// Both know general categories by PCRE2's version of Unicode: characters
// assigned later count as unassigned here.
//
// A construct outside the understood set is UNIMPLEMENTED and named with its
// offset: \b, \h, \R, \X, back-references, class intersection (&&), nested
// classes, POSIX brackets, inline options other than i.
absl::StatusOr<std::string> TranslateOnigurumaPattern(
    absl::string_view pattern);

}  // namespace invar

#endif  // INVAR_SCHEDULER_TOKENIZER_ONIGURUMA_PATTERN_H_
