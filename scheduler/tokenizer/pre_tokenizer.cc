#include "scheduler/tokenizer/pre_tokenizer.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "scheduler/tokenizer/utf8.h"

namespace invar {
namespace {

// ByteLevel's own pattern (use_regex), as GPT-2 published it.
constexpr absl::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)"
    R"(|\s+(?!\S)|\s+)";

constexpr size_t kMaxSteps = 64;

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Parse(const JsonNode& node) {
  PreTokenizer pre_tokenizer;
  if (absl::Status status = pre_tokenizer.ParseNode(node); !status.ok()) {
    return status;
  }
  if (!pre_tokenizer.byte_level_) {
    return node.Unsupported("a pre-tokenizer that does not end in ByteLevel");
  }
  return pre_tokenizer;
}

// Recursion is bounded by the nesting that ParseJson allows.
absl::Status PreTokenizer::ParseNode(const JsonNode& node) {
  if (absl::Status status = node.ExpectObject(); !status.ok()) return status;
  const absl::StatusOr<std::string> type = node.Find("type").String();
  if (!type.ok()) return type.status();
  if (*type == "Sequence") {
    if (absl::Status status = node.ExpectKeys({"type", "pretokenizers"});
        !status.ok()) {
      return status;
    }
    const JsonNode list = node.Find("pretokenizers");
    if (absl::Status status = list.ExpectArray(); !status.ok()) return status;
    for (size_t i = 0; i < list.value().size(); ++i) {
      if (absl::Status status = ParseNode(list.At(i)); !status.ok()) {
        return status;
      }
    }
    return absl::OkStatus();
  }
  if (byte_level_) {
    return node.Unsupported(
        absl::StrCat("a pre-tokenizer (", *type, ") after ByteLevel"));
  }
  if (steps_.size() >= kMaxSteps) {
    return node.Unsupported(
        absl::StrCat("more than ", kMaxSteps, " pre-tokenizers"));
  }
  if (*type == "Split") return ParseSplit(node);
  if (*type == "Digits") return ParseDigits(node);
  if (*type == "ByteLevel") return ParseByteLevel(node);
  return node.Unsupported(absl::StrCat("pre-tokenizer type \"", *type, "\""));
}

absl::Status PreTokenizer::ParseSplit(const JsonNode& node) {
  absl::Status status =
      node.ExpectKeys({"type", "pattern", "behavior", "invert"});
  const JsonNode pattern = node.Find("pattern");
  if (status.ok()) status = pattern.ExpectKeys({"Regex", "String"});
  if (!status.ok()) return status;
  if (pattern.value().size() != 1) {
    return pattern.Invalid("expected one of Regex and String");
  }
  Step step;
  const bool is_regex = pattern.value().contains("Regex");
  const JsonNode source = pattern.Find(is_regex ? "Regex" : "String");
  const absl::StatusOr<std::string> text = source.String();
  if (!text.ok()) return text.status();
  if (text->empty()) return source.Unsupported("an empty pattern");
  if (is_regex) {
    absl::StatusOr<Regex> regex = Regex::Compile(*text);
    if (!regex.ok()) {
      return absl::Status(regex.status().code(),
                          source.Invalid(regex.status().message()).message());
    }
    step.regex = *std::move(regex);
  } else {
    step.literal = *text;
  }

  const absl::StatusOr<std::string> behavior = node.Find("behavior").String();
  if (!behavior.ok()) return behavior.status();
  if (*behavior == "Isolated") {
    step.behavior = Behavior::kIsolated;
  } else if (*behavior == "Removed") {
    step.behavior = Behavior::kRemoved;
  } else if (*behavior == "MergedWithPrevious") {
    step.behavior = Behavior::kMergedWithPrevious;
  } else if (*behavior == "MergedWithNext") {
    step.behavior = Behavior::kMergedWithNext;
  } else if (*behavior == "Contiguous") {
    step.behavior = Behavior::kContiguous;
  } else {
    return node.Find("behavior")
        .Unsupported(absl::StrCat("behavior \"", *behavior, "\""));
  }
  const absl::StatusOr<bool> invert = node.Find("invert").BoolOr(false);
  if (!invert.ok()) return invert.status();
  step.invert = *invert;
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status PreTokenizer::ParseDigits(const JsonNode& node) {
  if (absl::Status status = node.ExpectKeys({"type", "individual_digits"});
      !status.ok()) {
    return status;
  }
  const absl::StatusOr<bool> individual =
      node.Find("individual_digits").BoolOr(false);
  if (!individual.ok()) return individual.status();
  // The reference's digits are all of category N, not Nd alone.
  absl::StatusOr<Regex> regex = Regex::Compile("\\p{N}");
  if (!regex.ok()) return regex.status();
  Step step;
  step.regex = *std::move(regex);
  step.behavior = *individual ? Behavior::kIsolated : Behavior::kContiguous;
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status PreTokenizer::ParseByteLevel(const JsonNode& node) {
  // trim_offsets moves offsets into the text, which are not reported here.
  if (absl::Status status = node.ExpectKeys(
          {"type", "add_prefix_space", "trim_offsets", "use_regex"});
      !status.ok()) {
    return status;
  }
  const absl::StatusOr<bool> prefix_space =
      node.Find("add_prefix_space").BoolOr(true);
  if (!prefix_space.ok()) return prefix_space.status();
  const absl::StatusOr<bool> use_regex = node.Find("use_regex").BoolOr(true);
  if (!use_regex.ok()) return use_regex.status();
  Step step;
  step.prefix_space = *prefix_space;
  if (*use_regex) {
    absl::StatusOr<Regex> regex = Regex::Compile(kByteLevelPattern);
    if (!regex.ok()) return regex.status();
    step.regex = *std::move(regex);
  }
  if (step.prefix_space || step.splits()) steps_.push_back(std::move(step));
  byte_level_ = true;
  return absl::OkStatus();
}

absl::StatusOr<Pieces> PreTokenizer::Run(absl::string_view text,
                                         RegexScratch* scratch) const {
  Pieces pieces;
  if (text.empty()) return pieces;
  pieces.views.push_back(text);
  std::vector<absl::string_view> next;
  std::vector<Stretch> stretches;
  for (const Step& step : steps_) {
    next.clear();
    for (absl::string_view piece : pieces.views) {
      if (step.prefix_space && !absl::StartsWith(piece, " ")) {
        piece = pieces.owned.emplace_back(absl::StrCat(" ", piece));
      }
      if (!step.splits()) {
        next.push_back(piece);
        continue;
      }
      if (absl::Status status = Divide(step, piece, scratch, &stretches);
          !status.ok()) {
        return status;
      }
      AppendPieces(step, piece, stretches, &next);
    }
    pieces.views.swap(next);
  }
  return pieces;
}

absl::StatusOr<std::optional<Span>> PreTokenizer::Find(const Step& step,
                                                       absl::string_view piece,
                                                       size_t start,
                                                       RegexScratch* scratch) {
  if (step.regex.has_value()) return step.regex->Find(piece, start, scratch);
  const size_t found = piece.find(step.literal, start);
  if (found == piece.npos) return std::nullopt;
  return Span{found, found + step.literal.size()};
}

// Cuts a piece into matches and the gaps between them, in order. A pattern
// may match the empty string, though not where the match before it ended.
absl::Status PreTokenizer::Divide(const Step& step, absl::string_view piece,
                                  RegexScratch* scratch,
                                  std::vector<Stretch>* stretches) {
  stretches->clear();
  size_t covered = 0;  // everything before lies in a stretch
  size_t start = 0;
  std::optional<size_t> last_end;
  while (start <= piece.size()) {
    absl::StatusOr<std::optional<Span>> found =
        Find(step, piece, start, scratch);
    if (!found.ok()) return found.status();
    if (!found->has_value()) break;
    const Span match = **found;
    if (match.empty() && match.end == last_end) {
      start += start < piece.size() ? CharacterLength(piece.substr(start)) : 1;
      continue;
    }
    if (covered < match.begin) {
      stretches->push_back({{covered, match.begin}, step.invert});
    }
    stretches->push_back({match, !step.invert});
    covered = start = match.end;
    last_end = match.end;
  }
  if (covered < piece.size()) {
    stretches->push_back({{covered, piece.size()}, step.invert});
  }
  return absl::OkStatus();
}

void PreTokenizer::AppendPieces(const Step& step, absl::string_view piece,
                                const std::vector<Stretch>& stretches,
                                std::vector<absl::string_view>* pieces) {
  const auto append = [&](size_t begin, size_t end) {
    if (begin < end) pieces->push_back(piece.substr(begin, end - begin));
  };
  // The piece under construction; stretches lie side by side, so that a
  // longer `end` joins one more.
  Span open = {0, 0};
  for (size_t i = 0; i < stretches.size(); ++i) {
    const auto& [span, is_match] = stretches[i];
    const bool after_match = i > 0 && stretches[i - 1].is_match;
    bool joins = false;  // the piece before it
    switch (step.behavior) {
      case Behavior::kIsolated:
        break;
      case Behavior::kRemoved:
        if (is_match) {
          append(open.begin, open.end);
          open = {span.end, span.end};
          continue;
        }
        break;
      case Behavior::kMergedWithPrevious:
        joins = is_match && !after_match;
        break;
      case Behavior::kMergedWithNext:
        joins = !is_match && after_match;
        break;
      case Behavior::kContiguous:
        joins = i > 0 && is_match == after_match;
        break;
    }
    if (!joins) {
      append(open.begin, open.end);
      open.begin = span.begin;
    }
    open.end = span.end;
  }
  append(open.begin, open.end);
}

}  // namespace invar
