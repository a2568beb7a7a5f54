// A checkpoint's files, opened: every tensor is known, and none has been read.
#ifndef INVAR_WORKER_MODEL_CHECKPOINT_SHARDS_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_SHARDS_H_

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model/checkpoint/architecture.h"
#include "worker/model/checkpoint/safetensors.h"
#include "worker/model/checkpoint/tensor_store.h"

namespace invar {

inline constexpr char kSingleShard[] = "model.safetensors";
inline constexpr char kShardIndex[] = "model.safetensors.index.json";

// Name -> SHA-256 (hex).
using Digests = std::map<std::string, std::string>;

struct Shards {
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  struct Place {
    const SafetensorsFile* file = nullptr;
    const Tensor* tensor = nullptr;
  };
  std::map<std::string, Place> tensors;
  // The file that lists the tensors: the index, or the only shard.
  std::string list_path;
  // By file name: of the index, and of each shard's bytes before the data.
  Digests digests;
};

// Opens model.safetensors, or the shards of model.safetensors.index.json, in
// `folder`. No tensor may be in two files, and the index must say of each where
// it is.
absl::StatusOr<Shards> OpenShards(const std::string& folder);

// What is wrong where the tensors should be exactly `expected`, in the order of
// `expected`: missing, left over, of another dtype or shape. At most `limit`
// messages, each naming file and tensor.
std::vector<absl::Status> CheckTable(const Shards& shards,
                                     const std::vector<TensorSpec>& expected,
                                     size_t limit = 1);

// Those of `expected` that are there, in its order.
std::vector<TensorHeader> Headers(const Shards& shards,
                                  const std::vector<TensorSpec>& expected);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_SHARDS_H_
