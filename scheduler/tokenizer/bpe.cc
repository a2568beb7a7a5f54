#include "scheduler/tokenizer/bpe.h"

#include <algorithm>
#include <optional>
#include <queue>
#include <tuple>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "scheduler/tokenizer/byte_alphabet.h"

namespace invar {
namespace {

std::string Quoted(absl::string_view text) {
  return absl::StrCat("\"", absl::Utf8SafeCEscape(text), "\"");
}

// The two sides of a merge, written "a b" or ["a", "b"].
absl::StatusOr<std::pair<std::string, std::string>> MergeSides(
    const JsonNode& node) {
  if (node.value().is_string()) {
    const std::string& text = node.value().get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space == text.npos || text.find(' ', space + 1) != text.npos) {
      return node.Invalid(absl::StrCat(
          Quoted(text), " is not two tokens with one space between"));
    }
    return std::pair(text.substr(0, space), text.substr(space + 1));
  }
  if (!node.value().is_array() || node.value().size() != 2 ||
      !node.value()[0].is_string() || !node.value()[1].is_string()) {
    return node.Invalid("expected \"a b\" or [\"a\", \"b\"]");
  }
  return std::pair(node.value()[0].get<std::string>(),
                   node.value()[1].get<std::string>());
}

}  // namespace

absl::StatusOr<Bpe> Bpe::Parse(const JsonNode& node, Vocabulary* vocabulary) {
  Bpe bpe;
  absl::Status status = bpe.ParseOptions(node);
  if (status.ok()) {
    status = bpe.ParseVocabulary(node.Find("vocab"), vocabulary);
  }
  if (status.ok()) status = bpe.ParseMerges(node.Find("merges"), *vocabulary);
  if (!status.ok()) return status;
  return bpe;
}

absl::Status Bpe::ParseOptions(const JsonNode& node) {
  if (absl::Status status = node.ExpectObject(); !status.ok()) return status;
  // Early files leave the type out; only BPE then has merges.
  const JsonNode type = node.Find("type");
  if (!type.IsNull() || !node.value().contains("merges")) {
    const absl::StatusOr<std::string> name = type.String();
    if (!name.ok()) return name.status();
    if (*name != "BPE") {
      return node.Unsupported(
          absl::StrCat("a tokenizer of another kind: model type ",
                       Quoted(*name), ", not byte-level BPE,"));
    }
  }
  // The unknown token never occurs: every byte has an entry.
  if (absl::Status status = node.ExpectKeys(
          {"type", "dropout", "unk_token", "continuing_subword_prefix",
           "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges",
           "vocab", "merges"});
      !status.ok()) {
    return status;
  }
  const JsonNode dropout = node.Find("dropout");
  if (!dropout.IsNull() && dropout.value() != 0.0) {
    return dropout.Unsupported("dropout, which makes ids random,");
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const JsonNode affix = node.Find(key);
    if (!affix.IsNull() && affix.value() != "") {
      return affix.Unsupported("a prefix or suffix of tokens");
    }
  }
  const JsonNode fallback = node.Find("byte_fallback");
  const absl::StatusOr<bool> byte_fallback = fallback.BoolOr(false);
  if (!byte_fallback.ok()) return byte_fallback.status();
  if (*byte_fallback) return fallback.Unsupported("byte_fallback");
  const absl::StatusOr<bool> ignore_merges =
      node.Find("ignore_merges").BoolOr(false);
  if (!ignore_merges.ok()) return ignore_merges.status();
  ignore_merges_ = *ignore_merges;
  return absl::OkStatus();
}

absl::Status Bpe::ParseVocabulary(const JsonNode& node,
                                  Vocabulary* vocabulary) {
  if (absl::Status status = node.ExpectObject(); !status.ok()) return status;
  vocabulary->reserve(node.value().size());
  for (const auto& [token, value] : node.value().items()) {
    const absl::StatusOr<int32_t> id = node.Find(token).TokenId();
    if (!id.ok()) return id.status();
    vocabulary->emplace(token, *id);
    if (!ignore_merges_) continue;
    bool in_alphabet = false;
    std::string bytes = BytesOfToken(token, &in_alphabet);
    if (in_alphabet) whole_pieces_.emplace(std::move(bytes), *id);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const std::string symbol = ByteSymbol(static_cast<uint8_t>(byte));
    const auto found = vocabulary->find(symbol);
    if (found == vocabulary->end()) {
      return node.Invalid(absl::StrCat("no entry ", Quoted(symbol),
                                       " for byte ", byte,
                                       ": not a byte-level vocabulary"));
    }
    byte_ids_[byte] = found->second;
  }
  return absl::OkStatus();
}

absl::Status Bpe::ParseMerges(const JsonNode& node,
                              const Vocabulary& vocabulary) {
  if (absl::Status status = node.ExpectArray(); !status.ok()) return status;
  merges_.reserve(node.value().size());
  const auto find = [&](const std::string& token) -> std::optional<int32_t> {
    const auto found = vocabulary.find(token);
    if (found == vocabulary.end()) return std::nullopt;
    return found->second;
  };
  for (size_t rank = 0; rank < node.value().size(); ++rank) {
    const JsonNode merge = node.At(rank);
    const auto sides = MergeSides(merge);
    if (!sides.ok()) return sides.status();
    const auto& [left, right] = *sides;
    const std::string joined = left + right;
    for (const std::string& token : {left, right, joined}) {
      if (token.empty() || !find(token).has_value()) {
        return merge.Invalid(absl::StrCat("names ", Quoted(token),
                                          ", which is not in the vocabulary"));
      }
    }
    // Of a pair given twice the reference keeps the later.
    merges_[{*find(left), *find(right)}] = {static_cast<int32_t>(rank),
                                            *find(joined)};
  }
  return absl::OkStatus();
}

const Bpe::Merge* Bpe::FindMerge(int32_t left, int32_t right) const {
  const auto found = merges_.find({left, right});
  return found == merges_.end() ? nullptr : &found->second;
}

// A token of the piece in the making, in a list linked by index.
struct Bpe::Symbol {
  int32_t id;
  int32_t length;  // bytes; 0 once joined to the symbol before it
  int32_t previous;
  int32_t next;  // -1 at the ends
};

// A pair that could be joined. It is out of date unless its symbols still
// have the length they had: a symbol only ever grows.
struct Bpe::Candidate {
  int32_t rank;
  int32_t left;  // index of the symbol
  int32_t length;
  int32_t id;
  // std::priority_queue puts the greatest first: here the lowest rank, then
  // the leftmost.
  bool operator<(const Candidate& other) const {
    return std::tie(rank, left) > std::tie(other.rank, other.left);
  }
};

int64_t Bpe::Encode(absl::string_view piece, std::vector<int32_t>* ids) const {
  if (ignore_merges_) {
    const auto found = whole_pieces_.find(piece);
    if (found != whole_pieces_.end()) {
      ids->push_back(found->second);
      return 0;
    }
  }
  const int32_t count = static_cast<int32_t>(piece.size());
  std::vector<Symbol> symbols(piece.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[i] = {byte_ids_[static_cast<uint8_t>(piece[i])], 1, i - 1,
                  i + 1 < count ? i + 1 : -1};
  }
  std::vector<Candidate> initial;
  int64_t pairs = 0;
  const auto candidate = [&](int32_t left) -> std::optional<Candidate> {
    ++pairs;
    if (left < 0 || symbols[left].next < 0) return std::nullopt;
    const Symbol& right = symbols[symbols[left].next];
    const Merge* merge = FindMerge(symbols[left].id, right.id);
    if (merge == nullptr) return std::nullopt;
    return Candidate{merge->rank, left, symbols[left].length + right.length,
                     merge->id};
  };
  for (int32_t i = 0; i < count; ++i) {
    if (const auto pair = candidate(i)) initial.push_back(*pair);
  }
  std::priority_queue<Candidate> queue(std::less<Candidate>(),
                                       std::move(initial));
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.left];
    if (left.length == 0 || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    if (left.length + right.length != best.length) continue;
    left.id = best.id;
    left.length = best.length;
    right.length = 0;
    left.next = right.next;
    if (right.next >= 0) symbols[right.next].previous = best.left;
    if (const auto pair = candidate(left.previous)) queue.push(*pair);
    if (const auto pair = candidate(best.left)) queue.push(*pair);
  }
  for (int32_t i = 0; i >= 0 && i < count; i = symbols[i].next) {
    ids->push_back(symbols[i].id);
  }
  return pairs;
}

}  // namespace invar
