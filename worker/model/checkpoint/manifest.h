// invar-manifest.json, optional: pins a checkpoint byte for byte. Whatever
// differs from it is refused by the name of the file and the tensor.
//
//   {"weights_digest": HEX, "files": {NAME: HEX}, "tensors": {NAME: HEX}}
//
// HEX is a SHA-256: of a file's bytes (of a safetensors file's, those before
// the data), of a tensor's bytes. `files` are those that a worker reads.
#ifndef INVAR_WORKER_MODEL_CHECKPOINT_MANIFEST_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_MANIFEST_H_

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/model/checkpoint/checkpoint.h"
#include "worker/model/checkpoint/shards.h"

namespace invar {

inline constexpr char kManifest[] = "invar-manifest.json";

struct Manifest {
  std::string path;            // of the manifest itself, for messages
  std::string weights_digest;  // Checkpoint::digest()
  Digests files;
  Digests tensors;
};

// Absent where `folder` has none.
absl::StatusOr<std::optional<Manifest>> ReadManifest(const std::string& folder);

// Reads every weight of a checkpoint that loads, keeping none.
absl::StatusOr<Manifest> MakeManifest(const std::string& folder,
                                      LoadProgressCallback progress = nullptr);

// The file's text.
std::string ManifestText(const Manifest& manifest);

// Of config.json, as it was read.
absl::Status CheckConfig(const Manifest& manifest, const std::string& folder,
                         std::string_view text);

// The other files: that they are exactly the manifest's and as it says.
absl::Status CheckFiles(const Manifest& manifest, const std::string& folder,
                        const Shards& shards);

// An error says how the tensor differs, without its name.
absl::Status CheckTensor(const Manifest& manifest, const std::string& tensor,
                         const std::string& digest);

// The whole, of a checkpoint with `tensors` tensors, each of which was checked.
absl::Status CheckWeights(const Manifest& manifest, size_t tensors,
                          const std::string& weights_digest);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_MANIFEST_H_
