#include "scheduler/tokenizer/oniguruma_pattern.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "scheduler/tokenizer/utf8.h"

namespace invar {
namespace {

constexpr size_t kMaxPatternBytes = 64 * 1024;

// General categories by their short names: the names that PCRE2 takes as they
// are. Any other name is looked up as a script.
constexpr std::array<absl::string_view, 37> kCategories = {
    "C",  "Cc", "Cf", "Cn", "Co", "Cs", "L",  "Ll", "Lm", "Lo",
    "Lt", "Lu", "M",  "Mc", "Me", "Mn", "N",  "Nd", "Nl", "No",
    "P",  "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S",  "Sc",
    "Sk", "Sm", "So", "Z",  "Zl", "Zp", "Zs"};

// Pairs that fold to one character (U+FB00 and so on, U+00DF) for Oniguruma
// when case is ignored, but not for PCRE2.
constexpr std::array<absl::string_view, 5> kFoldingPairs = {"ff", "fi", "fl",
                                                            "ss", "st"};

constexpr char kLatin1Numbers[] = "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}";

// One element that stands for a single character: either a literal, or a set
// written so that it can stand inside PCRE2's brackets.
struct Atom {
  std::optional<uint32_t> literal;
  std::string set;
};

std::string Literal(uint32_t code_point) {
  if (code_point < 0x80 && absl::ascii_isalnum(code_point)) {
    return std::string(1, static_cast<char>(code_point));
  }
  return absl::StrFormat("\\x{%X}", code_point);
}

class Translator {
 public:
  explicit Translator(absl::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Run() {
    if (pattern_.size() > kMaxPatternBytes) {
      return absl::UnimplementedError(
          absl::StrCat("pattern longer than ", kMaxPatternBytes, " bytes"));
    }
    if (absl::ConsumePrefix(&pattern_, "(?i)")) {
      consumed_prefix_ = 4;
      ignore_case_ = true;
      out_ = "(?i)";
    }
    while (!AtEnd()) {
      if (absl::Status status = Element(); !status.ok()) return status;
    }
    if (!groups_.empty()) return Malformed("a group is not closed");
    return out_;
  }

 private:
  bool AtEnd() const { return at_ >= pattern_.size(); }
  bool Sees(absl::string_view text) const {
    return absl::StartsWith(pattern_.substr(at_), text);
  }
  bool Take(absl::string_view text) {
    if (!Sees(text)) return false;
    at_ += text.size();
    return true;
  }
  // The next character of the pattern, which must not be at its end.
  uint32_t TakeCharacter();

  absl::Status Malformed(absl::string_view problem) const {
    return absl::InvalidArgumentError(
        absl::StrCat("offset ", consumed_prefix_ + at_, ": ", problem));
  }
  absl::Status Unsupported(absl::string_view construct) const {
    return absl::UnimplementedError(
        absl::StrCat("offset ", consumed_prefix_ + at_, ": ", construct,
                     " is not supported in a pattern"));
  }

  absl::Status Element();
  absl::Status OpenGroup();
  absl::Status CloseGroup();
  absl::Status SingleCharacter();
  absl::Status Quantifier();
  absl::StatusOr<Atom> Escape(bool in_class);
  absl::StatusOr<Atom> Property(bool negated);
  absl::StatusOr<Atom> HexCharacter(size_t digits);
  absl::StatusOr<Atom> ClassMember();
  absl::StatusOr<std::string> Class();
  absl::Status CheckCaseless(const Atom& atom);

  absl::string_view pattern_;
  size_t consumed_prefix_ = 0;  // keeps offsets true after "(?i)"
  size_t at_ = 0;
  std::string out_;
  bool ignore_case_ = false;
  std::vector<bool> groups_;   // ignore_case_ outside each open group
  char previous_literal_ = 0;  // lower case; 0: the last element was another
};

uint32_t Translator::TakeCharacter() {
  const uint32_t code_point = CodePoint(pattern_.substr(at_));
  at_ += CharacterLength(pattern_.substr(at_));
  return code_point;
}

absl::Status Translator::Element() {
  const char c = pattern_[at_];
  if (c == '(') return OpenGroup();
  if (c == ')') return CloseGroup();
  if (c == '|' || c == '^' || c == '$') {
    out_ += c;
    ++at_;
    previous_literal_ = 0;
    return absl::OkStatus();
  }
  if (c == '*' || c == '+' || c == '?') {
    return Malformed("a repeat has nothing to repeat");
  }
  return SingleCharacter();
}

absl::Status Translator::OpenGroup() {
  // Longest first. Oniguruma ends an option's reach otherwise than PCRE2
  // unless it is scoped, so "(?i)" stands only at the very start.
  constexpr std::array<absl::string_view, 7> kOpenings = {
      "(?<=", "(?<!", "(?i:", "(?:", "(?=", "(?!", "(?>"};
  previous_literal_ = 0;
  for (const absl::string_view opening : kOpenings) {
    if (!Take(opening)) continue;
    groups_.push_back(ignore_case_);
    if (opening == "(?i:") ignore_case_ = true;
    absl::StrAppend(&out_, opening);
    return absl::OkStatus();
  }
  if (Sees("(?")) {
    return Unsupported(absl::StrCat("\"", pattern_.substr(at_, 3), "\""));
  }
  Take("(");
  groups_.push_back(ignore_case_);
  out_ += "(?:";  // nothing reads a captured group
  return absl::OkStatus();
}

absl::Status Translator::CloseGroup() {
  if (groups_.empty()) return Malformed("an unmatched \")\"");
  ignore_case_ = groups_.back();
  groups_.pop_back();
  previous_literal_ = 0;
  Take(")");
  out_ += ')';
  return Quantifier();
}

absl::Status Translator::SingleCharacter() {
  const bool first = at_ == 0 && out_.empty();
  std::string element;
  bool is_set = true;
  char literal = 0;
  if (Take(".")) {
    element = ".";
  } else if (Take("[")) {
    absl::StatusOr<std::string> set = Class();
    if (!set.ok()) return set.status();
    element = *std::move(set);
  } else {
    Atom atom;
    if (Take("\\")) {
      absl::StatusOr<Atom> escape = Escape(/*in_class=*/false);
      if (!escape.ok()) return escape.status();
      atom = *std::move(escape);
    } else if (Sees("{")) {
      return Unsupported("an unescaped \"{\"");
    } else {
      atom.literal = TakeCharacter();
    }
    if (absl::Status status = CheckCaseless(atom); !status.ok()) return status;
    is_set = !atom.literal.has_value();
    element =
        is_set ? absl::StrCat("[", atom.set, "]") : Literal(*atom.literal);
    if (!is_set && *atom.literal < 0x80) {
      literal = absl::ascii_tolower(static_cast<char>(*atom.literal));
    }
  }
  previous_literal_ = literal;
  if (first && is_set && pattern_.substr(at_) == "+$") {
    // Without this, each start inside a run that does not reach `$` scans
    // that run again: quadratic. A run that fails from its first character
    // fails from every other, so only the first need be tried.
    out_ += absl::StrCat("(?<!", element, ")");
  }
  out_ += element;
  return Quantifier();
}

absl::Status Translator::CheckCaseless(const Atom& atom) {
  if (!ignore_case_) return absl::OkStatus();
  if (!atom.literal.has_value()) {
    return Unsupported("a property where case is ignored");
  }
  if (*atom.literal >= 0x80) {
    return Unsupported("a non-ASCII character where case is ignored");
  }
  const char pair[] = {previous_literal_,
                       absl::ascii_tolower(static_cast<char>(*atom.literal))};
  if (std::find(kFoldingPairs.begin(), kFoldingPairs.end(),
                absl::string_view(pair, 2)) != kFoldingPairs.end()) {
    return Unsupported(absl::StrCat("\"", absl::string_view(pair, 2),
                                    "\" where case is ignored"));
  }
  return absl::OkStatus();
}

// An optional repeat after an element, with its lazy or possessive mark.
absl::Status Translator::Quantifier() {
  if (AtEnd()) return absl::OkStatus();
  const char c = pattern_[at_];
  if (c == '*' || c == '+' || c == '?') {
    out_ += c;
    ++at_;
    if (Take("?")) {
      out_ += '?';
    } else if (Take("+")) {
      out_ += '+';
    }
  } else if (c == '{') {
    const size_t close = pattern_.find('}', at_);
    const absl::string_view counts =
        pattern_.substr(at_ + 1, close == pattern_.npos ? 0 : close - at_ - 1);
    const size_t comma = counts.find(',');
    const auto all_digits = [](absl::string_view text) {
      return std::all_of(text.begin(), text.end(), absl::ascii_isdigit);
    };
    const absl::string_view low = counts.substr(0, comma);
    const absl::string_view high =
        comma == counts.npos ? "" : counts.substr(comma + 1);
    if (low.empty() || !all_digits(low) || !all_digits(high)) {
      return Unsupported("a \"{\" that does not open {n}, {n,} or {n,m}");
    }
    out_ += absl::StrCat("{", counts, "}");
    at_ = close + 1;
    // Oniguruma reads "{n}+" as a repeated repeat and "{n}?" as optional.
    if (Sees("+") || (Sees("?") && comma == counts.npos)) {
      return Unsupported("a mark after {n}");
    }
    if (Take("?")) out_ += '?';
  } else {
    return absl::OkStatus();
  }
  previous_literal_ = 0;
  if (!AtEnd() && absl::string_view("*+?{").find(pattern_[at_]) !=
                      absl::string_view::npos) {
    return Unsupported("a repeat of a repeat");
  }
  return absl::OkStatus();
}

// What follows a backslash, in or out of brackets.
absl::StatusOr<Atom> Translator::Escape(bool in_class) {
  if (AtEnd()) return Malformed("a lone backslash at the end");
  const uint32_t code_point = TakeCharacter();
  switch (code_point) {
    case 's':
      return Atom{{}, "\\p{White_Space}"};
    case 'S':
      return Atom{{}, "\\P{White_Space}"};
    case 'd':
      return Atom{{}, "\\p{Nd}"};
    case 'D':
      return Atom{{}, "\\P{Nd}"};
    case 'w':
      // By itself, not in brackets, Oniguruma's \w has the superscripts and
      // fractions of Latin-1 too.
      return Atom{{},
                  absl::StrCat("\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}",
                               in_class ? "" : kLatin1Numbers)};
    case 'p':
    case 'P':
      return Property(code_point == 'P');
    case 'x':
      return HexCharacter(2);
    case 'u':
      return HexCharacter(4);
    case 't':
      return Atom{'\t', {}};
    case 'n':
      return Atom{'\n', {}};
    case 'v':
      return Atom{'\v', {}};
    case 'f':
      return Atom{'\f', {}};
    case 'r':
      return Atom{'\r', {}};
    case 'a':
      return Atom{'\a', {}};
    case 'e':
      return Atom{0x1B, {}};
    default:
      break;
  }
  if (code_point < 0x80 && absl::ascii_isalnum(code_point)) {
    return Unsupported(absl::StrCat(
        "\"\\", std::string(1, static_cast<char>(code_point)), "\""));
  }
  return Atom{code_point, {}};
}

absl::StatusOr<Atom> Translator::Property(bool negated) {
  const size_t close = pattern_.find('}', at_);
  if (!Take("{") || close == pattern_.npos) {
    return Malformed("a property is written \\p{Name}");
  }
  absl::string_view name = pattern_.substr(at_, close - at_);
  at_ = close + 1;
  if (absl::ConsumePrefix(&name, "^")) negated = !negated;
  const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(c) || c == '_';
  });
  if (name.empty() || !plain) return Unsupported("this property's name");
  const bool known = name == "White_Space" ||
                     std::find(kCategories.begin(), kCategories.end(), name) !=
                         kCategories.end();
  return Atom{
      {},
      absl::StrCat(negated ? "\\P{" : "\\p{", known ? "" : "sc:", name, "}")};
}

// \xHH, \x{H...} or \uHHHH.
absl::StatusOr<Atom> Translator::HexCharacter(size_t digits) {
  absl::string_view text = pattern_.substr(at_, digits);
  size_t next = at_ + digits;
  uint32_t limit = digits == 2 ? 0x7F : 0xFFFF;  // over \x7F: a raw byte
  if (digits == 2 && Take("{")) {
    const size_t close = pattern_.find('}', at_);
    if (close == pattern_.npos) return Malformed("\\x{ is not closed");
    text = pattern_.substr(at_, close - at_);
    next = close + 1;
    limit = 0x10FFFF;
  } else if (text.size() != digits) {
    return Malformed("too few hexadecimal digits");
  }
  uint32_t code_point = 0;
  if (text.empty() || text.size() > 6 ||
      !std::all_of(text.begin(), text.end(), absl::ascii_isxdigit)) {
    return Malformed("not a hexadecimal character");
  }
  for (const char c : text) {
    const int digit =
        absl::ascii_isdigit(c) ? c - '0' : absl::ascii_tolower(c) - 'a' + 10;
    code_point = code_point * 16 + digit;
  }
  if (code_point > limit || (code_point >= 0xD800 && code_point < 0xE000)) {
    return Unsupported("this hexadecimal character");
  }
  at_ = next;
  return Atom{code_point, {}};
}

// One member of a bracketed class, before any range.
absl::StatusOr<Atom> Translator::ClassMember() {
  if (Sees("[")) return Unsupported("a nested or POSIX class");
  if (Sees("&&")) return Unsupported("class intersection (&&)");
  absl::StatusOr<Atom> member = Atom{};
  if (Take("\\")) {
    member = Escape(/*in_class=*/true);
  } else {
    member->literal = TakeCharacter();
  }
  if (member.ok() && ignore_case_ &&
      (!member->literal.has_value() || *member->literal >= 0x80)) {
    return Unsupported("this class where case is ignored");
  }
  return member;
}

// The rest of a bracketed class whose "[" is taken.
absl::StatusOr<std::string> Translator::Class() {
  std::string out = Take("^") ? "[^" : "[";
  if (Sees("]")) return Unsupported("an unescaped \"]\" first in a class");
  while (!Take("]")) {
    if (AtEnd()) return Malformed("a class is not closed");
    const bool dash = Sees("-");
    absl::StatusOr<Atom> low = ClassMember();
    if (!low.ok()) return low.status();
    const bool range = Sees("-") && !Sees("-]");
    if (!range) {
      absl::StrAppend(&out, low->literal ? Literal(*low->literal) : low->set);
      continue;
    }
    if (dash || !low->literal.has_value()) {
      return Unsupported("an unescaped \"-\" that opens no range");
    }
    Take("-");
    if (AtEnd()) return Malformed("a class is not closed");
    absl::StatusOr<Atom> high = ClassMember();
    if (!high.ok()) return high.status();
    if (!high->literal.has_value() || *high->literal < *low->literal) {
      return Malformed("a range in a class ends before it begins");
    }
    if (Sees("-") && !Sees("-]")) {
      return Unsupported("an unescaped \"-\" after a range");
    }
    absl::StrAppend(&out, Literal(*low->literal), "-", Literal(*high->literal));
  }
  return out + "]";
}

}  // namespace

absl::StatusOr<std::string> TranslateOnigurumaPattern(
    absl::string_view pattern) {
  return Translator(pattern).Run();
}

}  // namespace invar
