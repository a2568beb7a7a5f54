#include "worker/model/checkpoint/checkpoint.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/digest.h"

namespace invar {
namespace {

using nlohmann::json;

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr size_t kAlignment = 64;

// Tensors by name, and the files that keep them mapped.
struct Shards {
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  // name -> (file, tensor)
  std::map<std::string, std::pair<const SafetensorsFile*, const Tensor*>>
      tensors;
};

absl::Status AddFile(const std::string& path, Shards& shards) {
  auto file = SafetensorsFile::Open(path);
  if (!file.ok()) return file.status();
  for (const auto& [name, tensor] : (*file)->tensors()) {
    const auto [it, added] =
        shards.tensors.emplace(name, std::pair(file->get(), &tensor));
    if (!added) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": tensor ", name, " is also in ", it->second.first->path()));
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
  const json index = json::parse(*text, nullptr, /*allow_exceptions=*/false);
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
  const std::string index_path = folder / kIndexFile;
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
        it->second.first->path() != std::string(folder / file)) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": says that tensor ", name, " is in ", file,
                       ", which does not have it"));
    }
  }
  for (const auto& [name, place] : shards.tensors) {
    if (!index->contains(name)) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": does not list tensor ", name, " of ",
                       place.first->path()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Shards> OpenShards(const std::string& folder_name) {
  const std::filesystem::path folder(folder_name);
  std::error_code error;
  const bool single = std::filesystem::exists(folder / kSingleFile, error);
  const bool indexed = std::filesystem::exists(folder / kIndexFile, error);
  if (single && indexed) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder_name, ": has both ", kSingleFile, " and ",
                     kIndexFile, "; remove the one that is not meant"));
  }
  if (!single && !indexed) {
    return absl::NotFoundError(absl::StrCat(folder_name, ": has neither ",
                                            kSingleFile, " nor ", kIndexFile));
  }
  Shards shards;
  const absl::Status opened = indexed ? OpenIndexed(folder, shards)
                                      : AddFile(folder / kSingleFile, shards);
  if (!opened.ok()) return opened;
  return shards;
}

const char* KindName(TensorKind kind) {
  switch (kind) {
    case TensorKind::kFloat:
      return "BF16, F16 or F32";
    case TensorKind::kFp8:
      return "F8_E4M3";
    case TensorKind::kScale:
      return "F32";
  }
  return "";
}

bool DtypeFits(TensorKind kind, TensorDtype dtype) {
  switch (kind) {
    case TensorKind::kFloat:
      return dtype == TensorDtype::kBf16 || dtype == TensorDtype::kF16 ||
             dtype == TensorDtype::kF32;
    case TensorKind::kFp8:
      return dtype == TensorDtype::kF8E4m3;
    case TensorKind::kScale:
      return dtype == TensorDtype::kF32;
  }
  return false;
}

// What is wrong with a tensor that should be as `spec` says; OK if nothing.
absl::Status CheckTensor(const TensorSpec& spec, const Tensor& tensor) {
  const bool shape_fits =
      tensor.shape == spec.shape || (spec.kind == TensorKind::kScale &&
                                     tensor.shape == std::vector<int64_t>{1});
  if (!shape_fits || !DtypeFits(spec.kind, tensor.dtype)) {
    return absl::InvalidArgumentError(
        absl::StrCat("is ", TensorDtypeName(tensor.dtype), " ",
                     ShapeString(tensor.shape), ", config.json asks for ",
                     KindName(spec.kind), " ", ShapeString(spec.shape)));
  }
  if (spec.kind == TensorKind::kScale) {
    float scale;
    std::memcpy(&scale, tensor.bytes.data(), sizeof(scale));
    if (!(scale > 0.0f) || !std::isfinite(scale)) {
      return absl::InvalidArgumentError(
          absl::StrCat("is ", scale, ", a scale is finite and above 0"));
    }
  }
  if (spec.kind == TensorKind::kFp8) {
    const int64_t nans =
        std::count_if(tensor.bytes.begin(), tensor.bytes.end(),
                      [](char code) { return (code & 0x7f) == 0x7f; });
    if (nans != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("has ", nans, " values that are not numbers"));
    }
  }
  return absl::OkStatus();
}

LoadedTensor Copy(const Tensor& tensor) {
  LoadedTensor copy;
  copy.dtype = tensor.dtype;
  copy.shape = tensor.shape;
  copy.bytes = static_cast<int64_t>(tensor.bytes.size());
  const size_t capacity =
      (std::max<size_t>(tensor.bytes.size(), 1) + kAlignment - 1) / kAlignment *
      kAlignment;
  copy.data.reset(
      static_cast<std::byte*>(std::aligned_alloc(kAlignment, capacity)));
  if (copy.data == nullptr) return copy;
  std::memcpy(copy.data.get(), tensor.bytes.data(), tensor.bytes.size());
  return copy;
}

// A tensor that no one expects, first in name order.
absl::Status CheckNoneLeft(const Shards& shards,
                           const std::vector<TensorSpec>& expected) {
  if (shards.tensors.size() == expected.size()) return absl::OkStatus();
  std::set<std::string_view> known;
  for (const TensorSpec& spec : expected) known.insert(spec.name);
  for (const auto& [name, place] : shards.tensors) {
    if (!known.contains(name)) {
      return absl::InvalidArgumentError(absl::StrCat(
          place.first->path(), ": tensor ", name,
          " has no place in the model that config.json describes"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

void LoadedTensor::Free::operator()(std::byte* p) const { std::free(p); }

absl::StatusOr<Checkpoint> Checkpoint::Load(
    const std::string& folder, const std::vector<TensorSpec>& expected) {
  absl::StatusOr<Shards> shards = OpenShards(folder);
  if (!shards.ok()) return shards.status();
  Checkpoint checkpoint;
  for (const TensorSpec& spec : expected) {
    const auto it = shards->tensors.find(spec.name);
    if (it == shards->tensors.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(folder, ": tensor ", spec.name, " is missing"));
    }
    const auto [file, tensor] = it->second;
    LoadedTensor copy = Copy(*tensor);
    if (copy.data == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat(file->path(), ": no memory for the ", copy.bytes,
                       " bytes of tensor ", spec.name));
    }
    // The copy is what is checked and hashed: it is what will be used.
    const Tensor kept{copy.dtype,
                      copy.shape,
                      {reinterpret_cast<const char*>(copy.data.get()),
                       static_cast<size_t>(copy.bytes)}};
    if (absl::Status status = CheckTensor(spec, kept); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(
          file->path(), ": tensor ", spec.name, " ", status.message()));
    }
    checkpoint.tensors_.emplace(spec.name, std::move(copy));
  }
  if (auto s = CheckNoneLeft(*shards, expected); !s.ok()) return s;
  Sha256 digest;
  for (const auto& [name, tensor] : checkpoint.tensors_) {
    digest.Update(absl::StrCat(
        name, " ", TensorDtypeName(tensor.dtype), " ",
        ShapeString(tensor.shape), " ",
        Sha256Hex({reinterpret_cast<const char*>(tensor.data.get()),
                   static_cast<size_t>(tensor.bytes)}),
        "\n"));
  }
  checkpoint.digest_ = digest.HexDigest();
  return checkpoint;
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path) {
  constexpr std::streamoff kMaxBytes = 64 << 20;
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  }
  const std::streamoff size = file.tellg();
  if (size < 0 || size > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is larger than ", kMaxBytes, " bytes"));
  }
  std::string text(static_cast<size_t>(size), '\0');
  file.seekg(0);
  file.read(text.data(), size);
  if (!file) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  }
  return text;
}

}  // namespace invar
