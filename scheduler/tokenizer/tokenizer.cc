#include "scheduler/tokenizer/tokenizer.h"

#include <fstream>
#include <tuple>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/json_text.h"
#include "common/tokenizer_digest.h"
#include "scheduler/tokenizer/byte_alphabet.h"
#include "scheduler/tokenizer/json_node.h"
#include "scheduler/tokenizer/utf8.h"

namespace invar {
namespace {

constexpr size_t kMaxFileBytes = 256u << 20;
constexpr size_t kMaxTextBytes = 64u << 20;
constexpr char kTokenizerFile[] = "tokenizer.json";
constexpr char kConfigFile[] = "tokenizer_config.json";

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = file ? std::streamoff{file.tellg()} : -1;
  if (size < 0) {
    return absl::NotFoundError(
        absl::StrCat(path, ": cannot be read; a model folder needs ",
                     kTokenizerFile, " and ", kConfigFile));
  }
  if (static_cast<size_t>(size) > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": ", size, " bytes, more than the ", kMaxFileBytes, " allowed"));
  }
  std::string bytes(static_cast<size_t>(size), '\0');
  file.seekg(0);
  if (!file.read(bytes.data(), size)) {
    return absl::DataLossError(absl::StrCat(path, ": read error"));
  }
  return bytes;
}

// The type of a component; empty where there is none.
absl::StatusOr<std::string> ComponentType(const JsonNode& node) {
  if (node.IsNull()) return "";
  if (absl::Status status = node.ExpectObject(); !status.ok()) return status;
  return node.Find("type").String();
}

absl::Status CheckNormalizer(const JsonNode& node) {
  const absl::StatusOr<std::string> type = ComponentType(node);
  if (!type.ok()) return type.status();
  if (type->empty()) return absl::OkStatus();
  if (*type != "Sequence") {
    return node.Unsupported(absl::StrCat("normalizer type \"", *type, "\""));
  }
  const JsonNode list = node.Find("normalizers");
  if (absl::Status status = list.ExpectArray(); !status.ok()) return status;
  for (size_t i = 0; i < list.value().size(); ++i) {
    if (absl::Status status = CheckNormalizer(list.At(i)); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

// A post-processor only puts special tokens around a text, which chat_format.h
// and adds_bos() do here; those that do more are refused.
absl::Status CheckPostProcessor(const JsonNode& node) {
  const absl::StatusOr<std::string> type = ComponentType(node);
  if (!type.ok()) return type.status();
  if (type->empty() || *type == "ByteLevel" || *type == "TemplateProcessing") {
    return absl::OkStatus();
  }
  if (*type != "Sequence") {
    return node.Unsupported(
        absl::StrCat("post-processor type \"", *type, "\""));
  }
  const JsonNode list = node.Find("processors");
  if (absl::Status status = list.ExpectArray(); !status.ok()) return status;
  for (size_t i = 0; i < list.value().size(); ++i) {
    if (absl::Status status = CheckPostProcessor(list.At(i)); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status CheckDecoder(const JsonNode& node) {
  const absl::StatusOr<std::string> type = ComponentType(node);
  if (!type.ok()) return type.status();
  if (*type != "ByteLevel") {
    return node.Unsupported(absl::StrCat("decoder type \"", *type,
                                         "\", where ByteLevel is needed,"));
  }
  return absl::OkStatus();
}

// The content of a token that tokenizer_config.json names by a string or by
// an object; empty where there is none.
absl::StatusOr<std::string> NamedToken(const JsonNode& node) {
  if (node.IsNull()) return "";
  return node.value().is_object() ? node.Find("content").String()
                                  : node.String();
}

// config.json, where it stands beside the tokenizer, says how many ids the
// model has.
absl::Status CheckModelVocabulary(const std::string& path, int32_t ids) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (absl::IsNotFound(text.status())) return absl::OkStatus();
  if (!text.ok()) return text.status();
  const absl::StatusOr<nlohmann::json> json = ParseJson(*text, path);
  if (!json.ok()) return json.status();
  const JsonNode size = JsonNode(*json, path).Find("vocab_size");
  if (size.IsNull()) return absl::OkStatus();
  const absl::StatusOr<int32_t> model_ids = size.TokenId();
  if (!model_ids.ok()) return model_ids.status();
  if (*model_ids >= ids) return absl::OkStatus();
  return size.Invalid(absl::StrCat("the model has ", *model_ids,
                                   " ids, its tokenizer ", ids,
                                   ": files of two models?"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(
    const std::string& model_path) {
  const absl::StatusOr<std::string> tokenizer_text =
      ReadFile(absl::StrCat(model_path, "/", kTokenizerFile));
  if (!tokenizer_text.ok()) return tokenizer_text.status();
  const absl::StatusOr<std::string> config_text =
      ReadFile(absl::StrCat(model_path, "/", kConfigFile));
  if (!config_text.ok()) return config_text.status();
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      Parse(*tokenizer_text, *config_text, model_path);
  if (!tokenizer.ok()) return tokenizer.status();
  if (absl::Status status = CheckModelVocabulary(
          absl::StrCat(model_path, "/config.json"), (*tokenizer)->vocab_size());
      !status.ok()) {
    return status;
  }
  absl::StatusOr<std::string> digest = TokenizerDigest(model_path);
  if (!digest.ok()) return digest.status();
  (*tokenizer)->digest_ = *std::move(digest);
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(
    absl::string_view tokenizer_json, absl::string_view config_json,
    absl::string_view folder) {
  const std::string tokenizer_path = absl::StrCat(folder, "/", kTokenizerFile);
  const std::string config_path = absl::StrCat(folder, "/", kConfigFile);
  const absl::StatusOr<nlohmann::json> tokenizer =
      ParseJson(tokenizer_json, tokenizer_path);
  if (!tokenizer.ok()) return tokenizer.status();
  const absl::StatusOr<nlohmann::json> config =
      ParseJson(config_json, config_path);
  if (!config.ok()) return config.status();
  return FromJson(JsonNode(*tokenizer, tokenizer_path),
                  JsonNode(*config, config_path));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(
    const JsonNode& tokenizer, const JsonNode& config) {
  // truncation and padding say how a training batch was cut; the length limit
  // of a request is the server's, so they are read by nobody.
  absl::Status status = tokenizer.ExpectKeys(
      {"version", "truncation", "padding", "added_tokens", "normalizer",
       "pre_tokenizer", "post_processor", "decoder", "model"});
  if (!status.ok()) return status;
  const JsonNode version = tokenizer.Find("version");
  if (version.value() != "1.0") {
    return version.Unsupported(
        absl::StrCat("a format of version ", version.value().dump()));
  }
  Bpe::Vocabulary vocabulary;
  absl::StatusOr<Bpe> bpe = Bpe::Parse(tokenizer.Find("model"), &vocabulary);
  if (!bpe.ok()) return bpe.status();
  status = CheckNormalizer(tokenizer.Find("normalizer"));
  if (status.ok()) status = CheckDecoder(tokenizer.Find("decoder"));
  if (status.ok()) {
    status = CheckPostProcessor(tokenizer.Find("post_processor"));
  }
  if (!status.ok()) return status;
  absl::StatusOr<PreTokenizer> pre_tokenizer =
      PreTokenizer::Parse(tokenizer.Find("pre_tokenizer"));
  if (!pre_tokenizer.ok()) return pre_tokenizer.status();
  absl::StatusOr<std::vector<AddedToken>> added =
      ParseAddedTokens(tokenizer.Find("added_tokens"));
  if (!added.ok()) return added.status();

  std::unique_ptr<Tokenizer> result(
      new Tokenizer(*std::move(bpe), *std::move(pre_tokenizer)));
  status = result->FillVocabulary(tokenizer, vocabulary, *added);
  if (status.ok()) status = result->ReadConfig(config, &*added);
  if (!status.ok()) return status;
  for (const AddedToken& token : *added) {
    if (token.special) result->special_[token.id] = true;
  }
  result->matcher_.emplace(*added);
  return result;
}

// The bytes of every id. Ids must be 0 to n - 1, each given once: the
// reference would number others anew.
absl::Status Tokenizer::FillVocabulary(const JsonNode& tokenizer,
                                       const Bpe::Vocabulary& vocabulary,
                                       const std::vector<AddedToken>& added) {
  size_t count = vocabulary.size();
  for (const AddedToken& token : added) {
    if (!vocabulary.contains(token.content)) ++count;
  }
  token_bytes_.resize(count);
  special_.resize(count);
  std::vector<bool> taken(count);
  const auto take = [&](int32_t id, const JsonNode& node) -> absl::Status {
    if (static_cast<size_t>(id) >= count) {
      return node.Invalid(absl::StrCat("id ", id, " leaves a gap: there are ",
                                       count, " tokens in all"));
    }
    if (taken[id]) {
      return node.Invalid(absl::StrCat("id ", id, " is already another's"));
    }
    taken[id] = true;
    return absl::OkStatus();
  };

  const JsonNode entries = tokenizer.Find("model").Find("vocab");
  for (const auto& [token, id] : vocabulary) {
    if (absl::Status status = take(id, entries.Find(token)); !status.ok()) {
      return status;
    }
    token_bytes_[id] = BytesOfToken(token);
  }
  const JsonNode list = tokenizer.Find("added_tokens");
  absl::flat_hash_map<absl::string_view, int32_t> seen;
  for (size_t i = 0; i < added.size(); ++i) {
    const auto& [content, id] = std::tie(added[i].content, added[i].id);
    if (!seen.emplace(content, id).second) {
      return list.At(i).Invalid("the same content as an earlier added token");
    }
    const auto entry = vocabulary.find(content);
    if (entry == vocabulary.end()) {
      if (absl::Status status = take(id, list.At(i)); !status.ok()) {
        return status;
      }
      token_bytes_[id] = BytesOfToken(content);
    } else if (entry->second != id) {
      return list.At(i).Invalid(absl::StrCat("id ", id, ", but the vocabulary ",
                                             "gives the same token id ",
                                             entry->second));
    }
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::ReadConfig(const JsonNode& config,
                                   std::vector<AddedToken>* added) {
  if (absl::Status status = config.ExpectObject(); !status.ok()) return status;
  std::optional<int32_t> pad_id;
  const struct {
    const char* key;
    std::optional<int32_t>* id;
  } named[] = {
      {"bos_token", &bos_id_}, {"eos_token", &eos_id_}, {"pad_token", &pad_id}};
  for (const auto& [key, id] : named) {
    const JsonNode node = config.Find(key);
    const absl::StatusOr<std::string> content = NamedToken(node);
    if (!content.ok()) return content.status();
    if (content->empty()) continue;
    for (AddedToken& token : *added) {
      if (token.content != *content) continue;
      *id = token.id;
      // Whatever tokenizer.json says: a user must not be able to write it.
      token.special = true;
    }
    if (!id->has_value()) {
      return node.Invalid(absl::StrCat("\"", absl::Utf8SafeCEscape(*content),
                                       "\" is not among the added tokens of ",
                                       kTokenizerFile));
    }
  }
  const absl::StatusOr<std::string> tokenizer_class =
      NamedToken(config.Find("tokenizer_class"));
  if (!tokenizer_class.ok()) return tokenizer_class.status();
  const absl::StatusOr<bool> adds_bos =
      config.Find("add_bos_token")
          .BoolOr(absl::StartsWith(*tokenizer_class, "LlamaTokenizer"));
  if (!adds_bos.ok()) return adds_bos.status();
  adds_bos_ = *adds_bos && bos_id_.has_value();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(
    absl::string_view utf8, const EncodeOptions& options) const {
  if (utf8.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a text of ", utf8.size(), " bytes is over the limit of ",
                     kMaxTextBytes));
  }
  if (const std::optional<size_t> bad = FindInvalidUtf8(utf8)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text is not valid UTF-8 at byte ", *bad));
  }
  std::vector<int32_t> ids;
  ids.reserve(utf8.size() / 4 + 1);
  RegexScratch scratch;
  for (const AddedTokenMatcher::Segment& segment :
       matcher_->Split(utf8, options.parse_special)) {
    if (segment.id.has_value()) {
      ids.push_back(*segment.id);
      continue;
    }
    const absl::StatusOr<Pieces> pieces =
        pre_tokenizer_.Run(segment.text, &scratch);
    if (!pieces.ok()) return pieces.status();
    for (const absl::string_view piece : pieces->views) {
      bpe_.Encode(piece, &ids);
    }
  }
  return ids;
}

absl::StatusOr<std::string> Tokenizer::Decode(std::span<const int32_t> ids,
                                              bool skip_special) const {
  Utf8Stream stream;
  std::string bytes;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!IsKnown(ids[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat("token_ids[", i, "]: ", ids[i],
                       " is outside the vocabulary of ", vocab_size()));
    }
    if (skip_special && special_[ids[i]]) continue;
    bytes.append(token_bytes_[ids[i]]);
  }
  std::string text = stream.Append(bytes);
  return text + stream.Finish();
}

}  // namespace invar
