// What the GPU backend takes of a checkpoint, as its config and headers tell:
// known before a weight is read, and without a GPU.
#ifndef INVAR_WORKER_MODEL_CHECKPOINT_GPU_SUPPORT_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_GPU_SUPPORT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "worker/model/checkpoint/config.h"
#include "worker/model/checkpoint/tensor_store.h"

namespace invar {

// Everything that a GPU worker would refuse of a checkpoint that has the
// tensors of its config, at most `limit` of it: UNIMPLEMENTED, each naming a
// field or a tensor. Empty: it takes the checkpoint. The caches are another
// matter: cuda::SupportsKv.
std::vector<absl::Status> CheckGpu(const ModelConfig& config,
                                   const std::vector<TensorHeader>& tensors,
                                   size_t limit = 1);

// RESOURCE_EXHAUSTED where that many bytes of weights find `free` ones.
absl::Status CheckWeightsFit(int64_t bytes, int64_t free);
// What to say of a step's memory that could not be had: `why` and what to do.
absl::Status StepDoesNotFit(const absl::Status& why);

// The matrix of device memory that has a module's weight: gate and up of an MLP
// lie in one, all experts' in one, and all experts' down in one. Weights of one
// matrix have one dtype.
struct StackPlace {
  std::string stack;  // its name
  int64_t index = 0;  // of the weight among the matrix's, from the top
};
StackPlace StackOf(std::string_view module);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_GPU_SUPPORT_H_
