#include "scheduler/tokenizer/added_tokens.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "scheduler/tokenizer/utf8.h"

namespace invar {
namespace {

constexpr size_t kMaxContentBytes = 1024;

// Unicode's White_Space.
bool IsSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// Where the run of spaces that ends at `end` begins.
size_t SpacesBefore(absl::string_view text, size_t end) {
  while (end > 0) {
    const size_t start = CharacterStartBefore(text, end);
    if (!IsSpace(CodePoint(text.substr(start)))) break;
    end = start;
  }
  return end;
}

// Where the run of spaces that begins at `start` ends.
size_t SpacesAfter(absl::string_view text, size_t start) {
  while (start < text.size() && IsSpace(CodePoint(text.substr(start)))) {
    start += CharacterLength(text.substr(start));
  }
  return start;
}

absl::StatusOr<AddedToken> ParseAddedToken(const JsonNode& node) {
  if (absl::Status status =
          node.ExpectKeys({"id", "content", "special", "normalized", "lstrip",
                           "rstrip", "single_word"});
      !status.ok()) {
    return status;
  }
  AddedToken token;
  const absl::StatusOr<int32_t> id = node.Find("id").TokenId();
  if (!id.ok()) return id.status();
  token.id = *id;
  const absl::StatusOr<std::string> content = node.Find("content").String();
  if (!content.ok()) return content.status();
  if (content->empty() || content->size() > kMaxContentBytes) {
    return node.Find("content").Invalid(absl::StrCat(
        "expected 1 to ", kMaxContentBytes, " bytes, found ", content->size()));
  }
  token.content = *content;
  bool single_word = false;
  const struct {
    const char* key;
    bool* value;
  } flags[] = {{"special", &token.special},
               {"normalized", &token.normalized},
               {"lstrip", &token.left_strip},
               {"rstrip", &token.right_strip},
               {"single_word", &single_word}};
  for (const auto& [key, value] : flags) {
    const absl::StatusOr<bool> flag = node.Find(key).BoolOr(false);
    if (!flag.ok()) return flag.status();
    *value = *flag;
  }
  if (single_word) return node.Unsupported("an added token with single_word");
  return token;
}

}  // namespace

absl::StatusOr<std::vector<AddedToken>> ParseAddedTokens(const JsonNode& node) {
  std::vector<AddedToken> tokens;
  if (node.IsNull()) return tokens;
  if (absl::Status status = node.ExpectArray(); !status.ok()) return status;
  for (size_t i = 0; i < node.value().size(); ++i) {
    absl::StatusOr<AddedToken> token = ParseAddedToken(node.At(i));
    if (!token.ok()) return token.status();
    tokens.push_back(*std::move(token));
  }
  return tokens;
}

AddedTokenMatcher::AddedTokenMatcher(const std::vector<AddedToken>& tokens) {
  for (const AddedToken& token : tokens) {
    (token.normalized ? normalized_ : first_).Add(token);
  }
}

std::vector<AddedTokenMatcher::Segment> AddedTokenMatcher::Split(
    absl::string_view text, bool parse_special) const {
  std::vector<Segment> segments;
  first_.Split(text, parse_special, &segments);
  if (normalized_.tokens.empty()) return segments;
  std::vector<Segment> both;
  for (const Segment& segment : segments) {
    if (segment.id.has_value()) {
      both.push_back(segment);
    } else {
      normalized_.Split(segment.text, parse_special, &both);
    }
  }
  return both;
}

void AddedTokenMatcher::Pass::Add(const AddedToken& token) {
  if (token_at.empty()) token_at.push_back(-1);
  int32_t node = 0;
  for (const char c : token.content) {
    const auto [child, is_new] = children.try_emplace(
        {node, static_cast<uint8_t>(c)}, static_cast<int32_t>(token_at.size()));
    node = child->second;
    if (is_new) token_at.push_back(-1);
  }
  token_at[node] = static_cast<int32_t>(tokens.size());
  tokens.push_back(token);
}

const AddedToken* AddedTokenMatcher::Pass::Longest(absl::string_view text,
                                                   size_t at) const {
  const AddedToken* longest = nullptr;
  int32_t node = 0;
  for (; at < text.size(); ++at) {
    const auto child = children.find({node, static_cast<uint8_t>(text[at])});
    if (child == children.end()) break;
    node = child->second;
    if (token_at[node] >= 0) longest = &tokens[token_at[node]];
  }
  return longest;
}

void AddedTokenMatcher::Pass::Split(absl::string_view text, bool parse_special,
                                    std::vector<Segment>* segments) const {
  size_t covered = 0;  // everything before lies in a segment
  const auto append_text = [&](size_t end) {
    if (covered < end) {
      segments->push_back({text.substr(covered, end - covered), std::nullopt});
    }
  };
  size_t at = 0;
  while (at < text.size()) {
    const AddedToken* token = Longest(text, at);
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at;
    size_t end = at + token->content.size();
    // A special token that is not wanted still takes up its text: no shorter
    // token is looked for inside.
    at = end;
    if (token->special && !parse_special) continue;
    if (token->left_strip) begin = SpacesBefore(text, begin);
    if (token->right_strip) end = SpacesAfter(text, end);
    append_text(begin);
    segments->push_back({{}, token->id});
    covered = std::max(covered, end);
  }
  append_text(text.size());
}

}  // namespace invar
