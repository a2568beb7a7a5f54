// The part of Checkpoint::Load that reads, hashes and checks tensors.
#ifndef INVAR_WORKER_MODEL_CHECKPOINT_LOADER_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_LOADER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/model/checkpoint/checkpoint.h"
#include "worker/model/checkpoint/file_reader.h"
#include "worker/model/checkpoint/shards.h"

namespace invar {

// Read at once, then hashed and checked while it is in a cache. A tensor of at
// least as many bytes is read in the file's blocks.
inline constexpr int64_t kLoadChunkBytes = int64_t{2} << 20;
static_assert(kLoadChunkBytes % FileReader::kBlockBytes == 0);

// One tensor's way into memory.
struct LoadTask {
  const TensorSpec* spec;
  Shards::Place place;
  int64_t begin = 0;            // in the checkpoint's memory, or
  std::byte* stored = nullptr;  // in the store
  LoadedTensor loaded = {};
  std::string digest = {};  // SHA-256 (hex) of the file's bytes
  absl::Status status = {};

  // Scales become fp32.
  int64_t LoadedBytes() const;
  bool InBlocks() const {
    return LoadedBytes() == place.tensor->bytes &&
           place.tensor->bytes >= kLoadChunkBytes;
  }
  // Of its first byte in the file's block.
  int64_t InBlock() const {
    return place.tensor->offset % FileReader::kBlockBytes;
  }
};

// Fills in all tasks, in their order but side by side. The error is that of the
// first that failed, and names file and tensor.
absl::Status LoadTensors(std::vector<LoadTask>& tasks,
                         const TensorMemory& memory,
                         const Checkpoint::Options& options);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_LOADER_H_
