#ifndef INVAR_WORKER_MODEL_CHECKPOINT_TENSOR_MEMORY_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_TENSOR_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"

namespace invar {

// The memory of all tensors of a checkpoint: one mapping of zeros, in huge
// pages where the system has them, since a fault for each 4 KiB of many GB
// takes longer than to fill them.
class TensorMemory {
 public:
  static constexpr int64_t kAlignment = 64;  // of a tensor: a cache line

  // Bytes that a tensor of `bytes` takes: whole cache lines, one at least.
  static int64_t Padded(int64_t bytes) {
    return (bytes + (bytes == 0) + kAlignment - 1) / kAlignment * kAlignment;
  }

  // RESOURCE_EXHAUSTED where memory does not have them.
  static absl::StatusOr<TensorMemory> Allocate(int64_t bytes);

  TensorMemory() = default;
  ~TensorMemory();
  TensorMemory(TensorMemory&& other) noexcept { *this = std::move(other); }
  TensorMemory& operator=(TensorMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  std::byte* data() const { return data_; }

  // Gives the whole pages in [begin, end) back; they read as zeros then.
  void Release(int64_t begin, int64_t end) const;

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_TENSOR_MEMORY_H_
