#include "worker/model/checkpoint/shards.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "common/json_text.h"
#include "worker/model/checkpoint/text_file.h"

namespace invar {
namespace {

using nlohmann::json;

absl::Status AddFile(const std::string& path, Shards& shards) {
  auto file = SafetensorsFile::Open(path);
  if (!file.ok()) return file.status();
  for (const auto& [name, tensor] : (*file)->tensors()) {
    const auto [it, added] =
        shards.tensors.emplace(name, Shards::Place{file->get(), &tensor});
    if (!added) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": tensor ", name, " is also in ", it->second.file->path()));
    }
  }
  shards.files.push_back(*std::move(file));
  return absl::OkStatus();
}

// name -> file name, from the index's weight_map.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(
    const std::string& path) {
  absl::StatusOr<std::string> text = ReadTextFile(path);
  if (!text.ok()) return text.status();
  const absl::StatusOr<json> parsed = ParseJson(*text, path);
  if (!parsed.ok()) return parsed.status();
  const json& index = *parsed;
  if (!index.is_object() || !index.contains("weight_map") ||
      !index["weight_map"].is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is not a JSON object with a weight_map"));
  }
  std::map<std::string, std::string> map;
  for (const auto& [name, file] : index["weight_map"].items()) {
    // A plain name: an index must not lead out of its folder.
    if (!file.is_string() || file.get_ref<const std::string&>().empty() ||
        file.get_ref<const std::string&>().find('/') != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor ", name, " is mapped to ", file.dump(),
                       ", which is no file name"));
    }
    map[name] = file.get<std::string>();
  }
  return map;
}

absl::Status OpenIndexed(const std::filesystem::path& folder, Shards& shards) {
  const std::string index_path = folder / kShardIndex;
  auto index = ReadIndex(index_path);
  if (!index.ok()) return index.status();
  std::set<std::string> files;
  for (const auto& [name, file] : *index) files.insert(file);
  for (const std::string& file : files) {
    if (auto s = AddFile(folder / file, shards); !s.ok()) return s;
  }
  for (const auto& [name, file] : *index) {
    const auto it = shards.tensors.find(name);
    if (it == shards.tensors.end() ||
        it->second.file->path() != std::string(folder / file)) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": says that tensor ", name, " is in ", file,
                       ", which does not have it"));
    }
  }
  for (const auto& [name, place] : shards.tensors) {
    if (!index->contains(name)) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": does not list tensor ", name, " of ",
                       place.file->path()));
    }
  }
  return absl::OkStatus();
}

const char* KindName(TensorKind kind) {
  switch (kind) {
    case TensorKind::kFloat:
      return "BF16, F16 or F32";
    case TensorKind::kFp8:
      return "F8_E4M3";
    case TensorKind::kScale:
      return "F32, BF16 or F16";
  }
  return "";
}

bool DtypeFits(TensorKind kind, TensorDtype dtype) {
  switch (kind) {
    case TensorKind::kFloat:
    case TensorKind::kScale:
      return dtype == TensorDtype::kBf16 || dtype == TensorDtype::kF16 ||
             dtype == TensorDtype::kF32;
    case TensorKind::kFp8:
      return dtype == TensorDtype::kF8E4m3;
  }
  return false;
}

}  // namespace

absl::StatusOr<Shards> OpenShards(const std::string& folder_name) {
  const std::filesystem::path folder(folder_name);
  std::error_code error;
  const bool single = std::filesystem::exists(folder / kSingleShard, error);
  const bool indexed = std::filesystem::exists(folder / kShardIndex, error);
  if (single && indexed) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder_name, ": has both ", kSingleShard, " and ",
                     kShardIndex, "; remove the one that is not meant"));
  }
  if (!single && !indexed) {
    return absl::NotFoundError(absl::StrCat(
        folder_name, ": has neither ", kSingleShard, " nor ", kShardIndex));
  }
  Shards shards;
  const absl::Status opened = indexed ? OpenIndexed(folder, shards)
                                      : AddFile(folder / kSingleShard, shards);
  if (!opened.ok()) return opened;
  return shards;
}

std::vector<absl::Status> CheckTable(const Shards& shards,
                                     const std::string& folder,
                                     const std::vector<TensorSpec>& expected,
                                     size_t limit) {
  std::vector<absl::Status> problems;
  const auto add = [&](const std::string& text) {
    if (problems.size() < limit) {
      problems.push_back(absl::InvalidArgumentError(text));
    }
  };
  std::set<std::string_view> known;
  for (const TensorSpec& spec : expected) {
    known.insert(spec.name);
    const auto it = shards.tensors.find(spec.name);
    if (it == shards.tensors.end()) {
      if (!spec.optional) {
        add(absl::StrCat(folder, ": tensor ", spec.name, " is missing"));
      }
      continue;
    }
    const auto& [file, tensor] = it->second;
    if (ShapeFits(spec, tensor->shape) && DtypeFits(spec.kind, tensor->dtype)) {
      continue;
    }
    add(absl::StrCat(file->path(), ": tensor ", spec.name, " is ",
                     TensorDtypeName(tensor->dtype), " ",
                     ShapeString(tensor->shape), ", config.json asks for ",
                     KindName(spec.kind), " ", ShapeString(spec.shape)));
  }
  for (const auto& [name, place] : shards.tensors) {
    if (known.contains(name)) continue;
    add(absl::StrCat(place.file->path(), ": tensor ", name,
                     " has no place in the model that config.json describes"));
  }
  return problems;
}

}  // namespace invar
