#include "worker/model/checkpoint/module_pattern.h"

#include <cstddef>
#include <optional>
#include <vector>

#include "absl/strings/ascii.h"

namespace invar {
namespace {

struct Step {
  enum class Kind { kLiteral, kAny, kDigit };
  Kind kind = Kind::kLiteral;
  char literal = 0;
  bool optional = false;  // '*'
  bool repeats = false;   // '*' or '+'

  bool Accepts(char c) const {
    switch (kind) {
      case Kind::kAny:
        return true;
      case Kind::kDigit:
        return absl::ascii_isdigit(static_cast<unsigned char>(c));
      case Kind::kLiteral:
        return c == literal;
    }
    return false;
  }
};

struct Pattern {
  std::vector<Step> steps;
  bool to_end = false;  // '$'
};

std::optional<Step> ParseStep(std::string_view& rest) {
  Step step;
  const char c = rest[0];
  rest.remove_prefix(1);
  if (c == '.') {
    step.kind = Step::Kind::kAny;
  } else if (c == '\\') {
    if (rest.empty()) return std::nullopt;
    const char escaped = rest[0];
    rest.remove_prefix(1);
    if (escaped == 'd') {
      step.kind = Step::Kind::kDigit;
    } else if (absl::ascii_ispunct(static_cast<unsigned char>(escaped))) {
      step.literal = escaped;
    } else {
      return std::nullopt;
    }
  } else if (absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' ||
             c == '-') {
    step.literal = c;
  } else {
    return std::nullopt;
  }
  if (!rest.empty() && (rest[0] == '*' || rest[0] == '+')) {
    step.optional = rest[0] == '*';
    step.repeats = true;
    rest.remove_prefix(1);
  }
  return step;
}

std::optional<Pattern> Parse(std::string_view text) {
  Pattern pattern;
  if (!text.empty() && text[0] == '^') text.remove_prefix(1);
  while (!text.empty()) {
    if (text == "$") {
      pattern.to_end = true;
      break;
    }
    const std::optional<Step> step = ParseStep(text);
    if (!step.has_value()) return std::nullopt;
    pattern.steps.push_back(*step);
  }
  return pattern;
}

// reached[i]: the first i steps match what has been read. Lets optional steps
// be passed over.
void PassOptional(const Pattern& pattern, std::vector<bool>& reached) {
  for (size_t i = 0; i < pattern.steps.size(); ++i) {
    if (reached[i] && pattern.steps[i].optional) reached[i + 1] = true;
  }
}

}  // namespace

bool IsModulePattern(std::string_view pattern) {
  return Parse(pattern).has_value();
}

bool ModulePatternMatches(std::string_view text, std::string_view name) {
  const std::optional<Pattern> pattern = Parse(text);
  if (!pattern.has_value()) return false;
  const size_t size = pattern->steps.size();
  std::vector<bool> reached(size + 1, false);
  reached[0] = true;
  PassOptional(*pattern, reached);
  for (const char c : name) {
    if (reached[size] && !pattern->to_end) return true;
    std::vector<bool> next(size + 1, false);
    for (size_t i = 0; i < size; ++i) {
      if (!pattern->steps[i].Accepts(c)) continue;
      if (reached[i]) next[i + 1] = true;
      if (reached[i + 1] && pattern->steps[i].repeats) next[i + 1] = true;
    }
    PassOptional(*pattern, next);
    reached.swap(next);
  }
  return reached[size];
}

}  // namespace invar
