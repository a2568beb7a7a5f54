#ifndef INVAR_SCHEDULER_TOKENIZER_TOKENIZER_H_
#define INVAR_SCHEDULER_TOKENIZER_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "scheduler/tokenizer/added_tokens.h"
#include "scheduler/tokenizer/bpe.h"
#include "scheduler/tokenizer/pre_tokenizer.h"

namespace invar {

struct EncodeOptions {
  // Whether the text of a special token ("<eos>") becomes that token. False
  // for text that a user wrote, so that nobody can forge one.
  bool parse_special = false;
};

// The tokenizer of a checkpoint: a folder with tokenizer.json, which is
// interpreted, and tokenizer_config.json, which names BOS and EOS. The ids are
// those of the reference implementation, PyPI `tokenizers`, without its
// post-processor. What is not understood is refused at loading, with file and
// JSON path: INVALID_ARGUMENT for a damaged file, UNIMPLEMENTED for a sound
// one of another kind. Immutable: any number of threads may use one.
class Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(
      const std::string& model_path);

  // The same for the two files' texts; `folder` stands for their place in
  // messages. Without config.json's check, and without a digest.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(
      absl::string_view tokenizer_json, absl::string_view config_json,
      absl::string_view folder);

  // INVALID_ARGUMENT for invalid UTF-8 or text beyond 64 MiB;
  // RESOURCE_EXHAUSTED if the file's own patterns give up on it. Time grows
  // as n log n at most.
  absl::StatusOr<std::vector<int32_t>> Encode(
      absl::string_view utf8, const EncodeOptions& options = {}) const;

  // The text of the ids; bytes that form no character become U+FFFD.
  // INVALID_ARGUMENT names an id outside the vocabulary. Text that arrives id
  // by id: stream_decoder.h.
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids,
                                     bool skip_special) const;

  // Ids are [0, vocab_size()), without a gap. A model's embedding may be
  // padded beyond.
  int32_t vocab_size() const {
    return static_cast<int32_t>(token_bytes_.size());
  }
  bool IsKnown(int32_t id) const { return id >= 0 && id < vocab_size(); }
  // The bytes that a token writes, often not whole characters. The id must be
  // known.
  absl::string_view TokenBytes(int32_t id) const { return token_bytes_[id]; }
  bool IsSpecial(int32_t id) const { return IsKnown(id) && special_[id]; }

  std::optional<int32_t> bos_id() const { return bos_id_; }
  std::optional<int32_t> eos_id() const { return eos_id_; }
  // Whether the checkpoint wants BOS in front of plain text
  // (add_bos_token; where absent, as LlamaTokenizer does).
  bool adds_bos() const { return adds_bos_; }

  // TokenizerDigest of the folder: part of the fingerprint.
  const std::string& digest() const { return digest_; }

 private:
  Tokenizer(Bpe bpe, PreTokenizer pre_tokenizer)
      : bpe_(std::move(bpe)), pre_tokenizer_(std::move(pre_tokenizer)) {}

  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(
      const JsonNode& tokenizer, const JsonNode& config);
  absl::Status FillVocabulary(const JsonNode& tokenizer,
                              const Bpe::Vocabulary& vocabulary,
                              const std::vector<AddedToken>& added);
  absl::Status ReadConfig(const JsonNode& config,
                          std::vector<AddedToken>* added);

  Bpe bpe_;
  PreTokenizer pre_tokenizer_;
  std::optional<AddedTokenMatcher> matcher_;
  std::vector<std::string> token_bytes_;  // by id
  std::vector<bool> special_;             // by id
  std::optional<int32_t> bos_id_;
  std::optional<int32_t> eos_id_;
  bool adds_bos_ = false;
  std::string digest_;
};

}  // namespace invar

#endif  // INVAR_SCHEDULER_TOKENIZER_TOKENIZER_H_
