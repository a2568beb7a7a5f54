#include "worker/model/checkpoint/shards.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
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
  shards.digests[std::filesystem::path(path).filename()] =
      (*file)->header_digest();
  shards.files.push_back(*std::move(file));
  return absl::OkStatus();
}

// name -> file name, from the index's weight_map.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(
    const std::string& path, std::string& digest) {
  absl::StatusOr<std::string> text = ReadTextFile(path);
  if (!text.ok()) return text.status();
  digest = Sha256Hex(*text);
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
    if (!IsPlainName(name)) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": weight_map has a name that no checkpoint's tensor has"));
    }
    // An index must not lead out of its folder.
    const std::string place = file.is_string() ? file.get<std::string>() : "";
    if (!IsPlainName(place) || place.find('/') != place.npos) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": tensor ", name, " is mapped to what is no file name"));
    }
    map[name] = place;
  }
  return map;
}

absl::Status OpenIndexed(const std::filesystem::path& folder, Shards& shards) {
  const std::string index_path = folder / kShardIndex;
  shards.list_path = index_path;
  auto index = ReadIndex(index_path, shards.digests[kShardIndex]);
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
  shards.list_path = folder / kSingleShard;
  const absl::Status opened =
      indexed ? OpenIndexed(folder, shards) : AddFile(shards.list_path, shards);
  if (!opened.ok()) return opened;
  return shards;
}

std::vector<absl::Status> CheckTable(const Shards& shards,
                                     const std::vector<TensorSpec>& expected,
                                     size_t limit) {
  std::vector<absl::Status> problems;
  const auto add = [&](const std::string& text) {
    if (problems.size() < limit) {
      problems.push_back(absl::InvalidArgumentError(text));
    }
  };
  std::set<std::string_view> known;
  // The first tensor of 16-bit values: BF16 read as F16 is noise, and would
  // pass every other check.
  const TensorSpec* half = nullptr;
  TensorDtype half_dtype = TensorDtype::kBf16;
  for (const TensorSpec& spec : expected) {
    known.insert(spec.name);
    const auto it = shards.tensors.find(spec.name);
    if (it == shards.tensors.end()) {
      if (!spec.optional) {
        add(absl::StrCat(shards.list_path, ": tensor ", spec.name,
                         " is missing, config.json asks for it"));
      }
      continue;
    }
    const auto& [file, tensor] = it->second;
    if (ShapeFits(spec, tensor->shape) && DtypeFits(spec.kind, tensor->dtype)) {
      if (TensorElementBytes(tensor->dtype) != 2) continue;
      if (half == nullptr) {
        half = &spec;
        half_dtype = tensor->dtype;
      } else if (tensor->dtype != half_dtype) {
        add(absl::StrCat(file->path(), ": tensor ", spec.name, " is ",
                         TensorDtypeName(tensor->dtype), ", but ", half->name,
                         " is ", TensorDtypeName(half_dtype),
                         "; a checkpoint has one of the two"));
      }
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

std::vector<TensorHeader> Headers(const Shards& shards,
                                  const std::vector<TensorSpec>& expected) {
  std::vector<TensorHeader> headers;
  for (const TensorSpec& spec : expected) {
    const auto it = shards.tensors.find(spec.name);
    if (it == shards.tensors.end()) continue;
    headers.push_back({&spec, it->second.tensor});
  }
  return headers;
}

}  // namespace invar
