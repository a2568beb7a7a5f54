#ifndef INVAR_SCHEDULER_TOKENIZER_JSON_NODE_H_
#define INVAR_SCHEDULER_TOKENIZER_JSON_NODE_H_

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace invar {

// A value inside a JSON file that knows where it stands, so that every
// complaint names the file and the path:
//   "m/tokenizer.json: $.model.merges[3]: ...".
// Borrows the document, which must outlive it.
class JsonNode {
 public:
  JsonNode(const nlohmann::json& document, std::string file)
      : value_(&document), file_(std::move(file)), path_("$") {}

  const nlohmann::json& value() const { return *value_; }
  bool IsNull() const { return value_->is_null(); }

  // A child of an object; a null node where the key is absent or this is not
  // an object.
  JsonNode Find(absl::string_view key) const;
  // A child of an array; `index` must be in range.
  JsonNode At(size_t index) const;

  absl::Status ExpectObject() const;
  absl::Status ExpectArray() const;
  // Refuses a key that is not in `known`: what is not understood here could
  // change the ids.
  absl::Status ExpectKeys(std::initializer_list<absl::string_view> known) const;

  absl::StatusOr<std::string> String() const;
  absl::StatusOr<int32_t> TokenId() const;
  // An absent or null value gives `fallback`.
  absl::StatusOr<bool> BoolOr(bool fallback) const;

  // INVALID_ARGUMENT: the file contradicts itself or its format.
  absl::Status Invalid(absl::string_view problem) const;
  // UNIMPLEMENTED: a legitimate file of a kind that is not supported.
  absl::Status Unsupported(absl::string_view problem) const;

 private:
  JsonNode(const nlohmann::json* value, std::string file, std::string path)
      : value_(value), file_(std::move(file)), path_(std::move(path)) {}
  absl::Status WrongKind(absl::string_view wanted) const;

  const nlohmann::json* value_;
  std::string file_;
  std::string path_;
};

}  // namespace invar

#endif  // INVAR_SCHEDULER_TOKENIZER_JSON_NODE_H_
