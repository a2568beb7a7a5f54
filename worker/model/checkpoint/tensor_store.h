#ifndef INVAR_WORKER_MODEL_CHECKPOINT_TENSOR_STORE_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_TENSOR_STORE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/model/checkpoint/architecture.h"
#include "worker/model/checkpoint/safetensors.h"

namespace invar {

// A tensor as its file's header has it.
struct TensorHeader {
  const TensorSpec* spec = nullptr;
  const Tensor* tensor = nullptr;  // its shape may be ShapeFits' other one
};

// Memory that is not the host's, a GPU's, in which tensors are to lie. Each
// piece of them goes there as soon as it is read and hashed, beside the next
// one's reading, so that the host never holds them.
class TensorStore {
 public:
  // One loading thread's way there; destroying it ends what is under way.
  class Copier {
   public:
    virtual ~Copier() = default;
    // Of `bytes`, on a block of FileReader. What is written there must be
    // copied before the next call, which waits for a room that has been.
    virtual absl::StatusOr<char*> Room(int64_t bytes) = 0;
    // Begins to copy out of the last room; `to` is in the store.
    virtual absl::Status Copy(const char* from, int64_t bytes,
                              std::byte* to) = 0;
    // Waits until all copies have arrived.
    virtual absl::Status Finish() = 0;
  };

  virtual ~TensorStore() = default;

  // Where each of `tensors` is to lie; null: in host memory. Called once, when
  // all headers are checked, and no tensor has been read. Scales are the
  // host's: they are converted there.
  virtual absl::StatusOr<std::vector<std::byte*>> Place(
      const std::vector<TensorHeader>& tensors) = 0;

  // For the thread that calls it.
  virtual absl::StatusOr<std::unique_ptr<Copier>> NewCopier() = 0;
};

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_TENSOR_STORE_H_
