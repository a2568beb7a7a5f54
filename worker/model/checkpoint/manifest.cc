#include "worker/model/checkpoint/manifest.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/json_text.h"
#include "worker/model/checkpoint/architecture.h"
#include "worker/model/checkpoint/config.h"
#include "worker/model/checkpoint/text_file.h"

namespace invar {
namespace {

using nlohmann::json;

// What a worker or its scheduler reads beside config and weights.
constexpr const char* kTokenizerFiles[] = {"tokenizer.json",
                                           "tokenizer_config.json"};

bool IsDigest(const json& value) {
  if (!value.is_string()) return false;
  const std::string& text = value.get_ref<const std::string&>();
  return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

absl::StatusOr<Digests> ReadDigests(const json& manifest, const char* field,
                                    const std::string& path) {
  const json& object = manifest[field];
  if (!object.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", field, " is not an object"));
  }
  Digests digests;
  for (const auto& [name, digest] : object.items()) {
    if (!IsDigest(digest)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": ", field, ".", name, " is no SHA-256 in hex"));
    }
    digests[name] = digest.get<std::string>();
  }
  return digests;
}

// SHA-256 of every file that CheckFiles is asked for.
absl::StatusOr<Digests> DigestFiles(const std::string& folder,
                                    const Shards& shards) {
  Digests digests = shards.digests;
  for (const std::string name : kTokenizerFiles) {
    const std::string path = std::filesystem::path(folder) / name;
    std::error_code error;
    if (!std::filesystem::exists(path, error)) continue;
    absl::StatusOr<std::string> text = ReadTextFile(path);
    if (!text.ok()) return text.status();
    digests[name] = Sha256Hex(*text);
  }
  return digests;
}

absl::Status CheckFile(const Manifest& manifest, const std::string& folder,
                       const std::string& name, const std::string& digest) {
  const std::string path = std::filesystem::path(folder) / name;
  const auto pinned = manifest.files.find(name);
  if (pinned == manifest.files.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is not among the files of ", manifest.path));
  }
  if (pinned->second == digest) return absl::OkStatus();
  const bool shard = absl::EndsWith(name, ".safetensors");
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": is not the file that ", manifest.path,
                   " pins: the SHA-256 of its ", shard ? "header" : "bytes",
                   " is ", digest, ", not ", pinned->second,
                   "; bring the file back, or pin the new checkpoint"));
}

}  // namespace

absl::StatusOr<std::optional<Manifest>> ReadManifest(
    const std::string& folder) {
  Manifest manifest;
  manifest.path = std::filesystem::path(folder) / kManifest;
  std::error_code error;
  if (!std::filesystem::exists(manifest.path, error)) return std::nullopt;
  absl::StatusOr<std::string> text = ReadTextFile(manifest.path);
  if (!text.ok()) return text.status();
  const absl::StatusOr<json> parsed = ParseJson(*text, manifest.path);
  if (!parsed.ok()) return parsed.status();
  if (!parsed->is_object() || parsed->size() != 3 ||
      !parsed->contains("weights_digest") || !parsed->contains("files") ||
      !parsed->contains("tensors") || !IsDigest((*parsed)["weights_digest"])) {
    return absl::InvalidArgumentError(absl::StrCat(
        manifest.path,
        ": is not an object of weights_digest, files and tensors"));
  }
  manifest.weights_digest = (*parsed)["weights_digest"].get<std::string>();
  absl::StatusOr<Digests> files = ReadDigests(*parsed, "files", manifest.path);
  if (!files.ok()) return files.status();
  absl::StatusOr<Digests> tensors =
      ReadDigests(*parsed, "tensors", manifest.path);
  if (!tensors.ok()) return tensors.status();
  manifest.files = *std::move(files);
  manifest.tensors = *std::move(tensors);
  return manifest;
}

absl::StatusOr<Manifest> MakeManifest(const std::string& folder,
                                      LoadProgressCallback progress) {
  const std::string config_path = std::filesystem::path(folder) / kConfigFile;
  absl::StatusOr<std::string> text = ReadTextFile(config_path);
  if (!text.ok()) return text.status();
  absl::StatusOr<ModelConfig> config = ParseModelConfig(*text, config_path);
  if (!config.ok()) return config.status();
  absl::StatusOr<Shards> shards = OpenShards(folder);
  if (!shards.ok()) return shards.status();
  absl::StatusOr<Digests> files = DigestFiles(folder, *shards);
  if (!files.ok()) return files.status();
  absl::StatusOr<Checkpoint> checkpoint =
      Checkpoint::Load(folder, ArchitectureTensors(*config),
                       {.progress = std::move(progress), .discard = true});
  if (!checkpoint.ok()) return checkpoint.status();
  Manifest manifest;
  manifest.path = std::filesystem::path(folder) / kManifest;
  manifest.weights_digest = checkpoint->digest();
  manifest.files = *std::move(files);
  manifest.files[kConfigFile] = Sha256Hex(*text);
  manifest.tensors = checkpoint->tensor_digests();
  return manifest;
}

std::string ManifestText(const Manifest& manifest) {
  const nlohmann::ordered_json text = {
      {"weights_digest", manifest.weights_digest},
      {"files", manifest.files},
      {"tensors", manifest.tensors}};
  return text.dump(1) + "\n";
}

absl::Status CheckConfig(const Manifest& manifest, const std::string& folder,
                         std::string_view text) {
  return CheckFile(manifest, folder, kConfigFile,
                   Sha256Hex({text.data(), text.size()}));
}

absl::Status CheckFiles(const Manifest& manifest, const std::string& folder,
                        const Shards& shards) {
  const absl::StatusOr<Digests> digests = DigestFiles(folder, shards);
  if (!digests.ok()) return digests.status();
  for (const auto& [name, digest] : *digests) {
    absl::Status same = CheckFile(manifest, folder, name, digest);
    if (!same.ok()) return same;
  }
  for (const auto& [name, digest] : manifest.files) {
    if (name == kConfigFile || digests->contains(name)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(manifest.path, ": pins the file ", name,
                     ", which the checkpoint does not have"));
  }
  return absl::OkStatus();
}

absl::Status CheckTensor(const Manifest& manifest, const std::string& tensor,
                         const std::string& digest) {
  const auto pinned = manifest.tensors.find(tensor);
  if (pinned == manifest.tensors.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("is not among the tensors of ", manifest.path));
  }
  if (pinned->second == digest) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "is not the one that ", manifest.path, " pins: its bytes' SHA-256 is ",
      digest, ", not ", pinned->second, "; download the file again"));
}

absl::Status CheckWeights(const Manifest& manifest, size_t tensors,
                          const std::string& weights_digest) {
  if (manifest.tensors.size() != tensors) {
    return absl::InvalidArgumentError(
        absl::StrCat(manifest.path, ": pins ", manifest.tensors.size(),
                     " tensors, but the checkpoint has ", tensors));
  }
  if (manifest.weights_digest == weights_digest) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      manifest.path, ": pins the weights digest ", manifest.weights_digest,
      ", but the checkpoint's is ", weights_digest));
}

}  // namespace invar
