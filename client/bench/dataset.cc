#include "client/bench/dataset.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/json_text.h"

namespace invar::bench {
namespace {

using Json = nlohmann::json;

// In the range of the API's int32 fields.
bool IsCount(const Json& value) {
  return value.is_number_unsigned() && value.get<uint64_t>() <= INT32_MAX;
}

bool ReadPrompt(const std::string& key, const Json& value,
                DatasetEntry& entry) {
  if (key == "text" && value.is_string()) {
    entry.prompt = DatasetEntry::Text{value.get<std::string>()};
    return true;
  }
  if (key == "chat" && value.is_string()) {
    entry.prompt = DatasetEntry::Chat{value.get<std::string>()};
    return true;
  }
  if (key != "token_ids" || !value.is_array()) return false;
  DatasetEntry::TokenIds ids;
  for (const Json& id : value) {
    if (!IsCount(id)) return false;
    ids.push_back(id.get<int32_t>());
  }
  entry.prompt = std::move(ids);
  return true;
}

bool ReadEntry(absl::string_view line, DatasetEntry& entry) {
  const absl::StatusOr<Json> json = ParseJson(line, "");
  if (!json.ok() || !json->is_object()) return false;
  int prompts = 0;
  for (const auto& [key, value] : json->items()) {
    if (key == "output_tokens") {
      if (!IsCount(value)) return false;
      entry.output_tokens = value.get<int32_t>();
    } else if (ReadPrompt(key, value, entry)) {
      ++prompts;
    } else {
      return false;
    }
  }
  return prompts == 1;
}

}  // namespace

absl::StatusOr<std::vector<DatasetEntry>> ParseDataset(
    absl::string_view contents, absl::string_view name) {
  std::vector<DatasetEntry> entries;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(contents, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty()) continue;
    DatasetEntry entry;
    if (!ReadEntry(line, entry)) {
      return absl::InvalidArgumentError(absl::StrCat(
          name, " line ", number,
          " is not an object with one of \"text\", \"chat\" (strings) or "
          "\"token_ids\" (a list), and \"output_tokens\" if it likes"));
    }
    entries.push_back(std::move(entry));
  }
  if (entries.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(name, " has no line"));
  }
  return entries;
}

}  // namespace invar::bench
