// A checkpoint's tensors in memory, every one of them checked.
#ifndef INVAR_WORKER_MODEL_CHECKPOINT_CHECKPOINT_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_CHECKPOINT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model/checkpoint/architecture.h"
#include "worker/model/checkpoint/safetensors.h"
#include "worker/model/checkpoint/tensor_memory.h"
#include "worker/model/checkpoint/tensor_store.h"
#include "worker/model/checkpoint/text_file.h"

namespace invar {

// A copy of a tensor, aligned to a cache line and padded to whole ones. A copy
// and no mapping: a file that changes under a running server must not change
// answers.
struct LoadedTensor {
  // As in the file; scales are F32, whatever the file has.
  TensorDtype dtype = TensorDtype::kF32;
  std::vector<int64_t> shape;
  std::byte* data = nullptr;  // in the checkpoint's memory, or in the store
  int64_t bytes = 0;
};

struct Manifest;

// Called by any of the threads that load, with the bytes read so far and in
// all: `done` grows, but calls may overtake each other.
using LoadProgressCallback = std::function<void(int64_t done, int64_t total)>;

class Checkpoint {
 public:
  struct Options {
    int threads = 0;  // that read and hash; 0: chosen by the machine
    LoadProgressCallback progress = nullptr;
    // What files, tensors and digest must be; none: whatever they are.
    const Manifest* manifest = nullptr;
    // Gives each tensor's memory back once it is checked: for digests alone.
    bool discard = false;
    // Takes tensors out of host memory; none: all are in it.
    TensorStore* store = nullptr;
  };

  // Reads model.safetensors, or the shards of model.safetensors.index.json, in
  // `folder`. They must hold exactly `expected`, and the index must say of
  // each tensor where it is; nothing is read before that is so. Errors name
  // the file and the tensor.
  static absl::StatusOr<Checkpoint> Load(
      const std::string& folder, const std::vector<TensorSpec>& expected,
      const Options& options);
  static absl::StatusOr<Checkpoint> Load(
      const std::string& folder, const std::vector<TensorSpec>& expected) {
    return Load(folder, expected, Options());
  }

  // A tensor of `expected` that is there.
  const LoadedTensor& tensor(std::string_view name) const {
    return tensors_.find(name)->second;
  }
  bool Has(std::string_view name) const {
    return tensors_.find(name) != tensors_.end();
  }

  // SHA-256 (hex) over a line "name dtype shape sha256" a tensor, in name
  // order, the shape as `expected` has it: independent of sharding, of file
  // names and of how a scale's shape is written.
  const std::string& digest() const { return digest_; }
  // SHA-256 (hex) of each tensor's bytes.
  const std::map<std::string, std::string>& tensor_digests() const {
    return tensor_digests_;
  }

  int64_t bytes() const;

 private:
  TensorMemory memory_;
  std::map<std::string, LoadedTensor, std::less<>> tensors_;
  std::map<std::string, std::string> tensor_digests_;
  std::string digest_;
};

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_CHECKPOINT_H_
