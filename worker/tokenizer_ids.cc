#include "worker/tokenizer_ids.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace invar {
namespace {

using nlohmann::json;

// The member of that name, or null.
const json* Find(const json* parent, const char* name) {
  if (parent == nullptr || !parent->is_object()) return nullptr;
  const auto found = parent->find(name);
  return found == parent->end() ? nullptr : &*found;
}

}  // namespace

absl::StatusOr<int64_t> TokenizerIds(const std::string& model_path) {
  const std::string path = std::filesystem::path(model_path) / "tokenizer.json";
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  const json tokenizer = json::parse(file, nullptr, /*allow_exceptions=*/false);
  const json* vocabulary = Find(Find(&tokenizer, "model"), "vocab");
  if (vocabulary == nullptr || !vocabulary->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": it has no object model.vocab"));
  }
  int64_t ids = 0;
  const auto count = [&ids](const json* id) {
    if (id == nullptr || !id->is_number_unsigned()) return false;
    ids = std::max(ids, id->get<int64_t>() + 1);
    return true;
  };
  for (const auto& [token, id] : vocabulary->items()) {
    if (!count(&id)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": an id in model.vocab is not a number"));
    }
  }
  const json* added = Find(&tokenizer, "added_tokens");
  if (added != nullptr && added->is_array()) {
    for (const json& token : *added) {
      if (!count(Find(&token, "id"))) {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ": an added token has no id"));
      }
    }
  }
  if (ids == 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": it has no token"));
  }
  return ids;
}

}  // namespace invar
