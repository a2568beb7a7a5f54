#include "scheduler/tokenizer/json_node.h"

#include <algorithm>
#include <limits>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace invar {
namespace {

const nlohmann::json& NullValue() {
  static const nlohmann::json null_value;
  return null_value;
}

}  // namespace

JsonNode JsonNode::Find(absl::string_view key) const {
  const nlohmann::json* child = &NullValue();
  if (value_->is_object()) {
    const auto found = value_->find(std::string(key));
    if (found != value_->end()) child = &*found;
  }
  return JsonNode(child, file_, absl::StrCat(path_, ".", key));
}

JsonNode JsonNode::At(size_t index) const {
  return JsonNode(&(*value_)[index], file_,
                  absl::StrCat(path_, "[", index, "]"));
}

absl::Status JsonNode::ExpectObject() const {
  return value_->is_object() ? absl::OkStatus() : WrongKind("an object");
}

absl::Status JsonNode::ExpectArray() const {
  return value_->is_array() ? absl::OkStatus() : WrongKind("an array");
}

absl::Status JsonNode::ExpectKeys(
    std::initializer_list<absl::string_view> known) const {
  if (absl::Status status = ExpectObject(); !status.ok()) return status;
  for (const auto& item : value_->items()) {
    if (std::find(known.begin(), known.end(), item.key()) == known.end()) {
      return Unsupported(absl::StrCat("unknown key \"",
                                      absl::Utf8SafeCEscape(item.key()), "\""));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> JsonNode::String() const {
  if (!value_->is_string()) return WrongKind("a string");
  return value_->get_ref<const std::string&>();
}

absl::StatusOr<int32_t> JsonNode::TokenId() const {
  if (!value_->is_number_integer()) return WrongKind("a token id");
  const bool fits =
      value_->is_number_unsigned() &&
      value_->get<uint64_t>() <=
          static_cast<uint64_t>(std::numeric_limits<int32_t>::max());
  if (!fits) {
    return Invalid(absl::StrCat(value_->dump(), " is not a token id"));
  }
  return value_->get<int32_t>();
}

absl::StatusOr<bool> JsonNode::BoolOr(bool fallback) const {
  if (value_->is_null()) return fallback;
  if (!value_->is_boolean()) return WrongKind("true or false");
  return value_->get<bool>();
}

absl::Status JsonNode::Invalid(absl::string_view problem) const {
  return absl::InvalidArgumentError(
      absl::StrCat(file_, ": ", path_, ": ", problem));
}

absl::Status JsonNode::Unsupported(absl::string_view problem) const {
  return absl::UnimplementedError(
      absl::StrCat(file_, ": ", path_, ": ", problem, " is not supported"));
}

absl::Status JsonNode::WrongKind(absl::string_view wanted) const {
  return Invalid(
      absl::StrCat("expected ", wanted, ", found ", value_->type_name()));
}

}  // namespace invar
