// Device memory that a checkpoint's matrices go to while they are read.
#ifndef INVAR_WORKER_MODEL_CUDA_DEVICE_STORE_H_
#define INVAR_WORKER_MODEL_CUDA_DEVICE_STORE_H_

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"
#include "worker/model/checkpoint/config.h"
#include "worker/model/checkpoint/tensor_store.h"

namespace invar::cuda {

// Takes every matrix but kv_b_proj and the router's, which the host rearranges
// first, and an embedding that is the LM head too. Weights that are stacked
// (StackOf) lie in one buffer.
class DeviceStore final : public TensorStore {
 public:
  DeviceStore(const ModelConfig& config, int device)
      : config_(config), device_(device) {}

  // UNIMPLEMENTED: what the kernels do not compute. RESOURCE_EXHAUSTED: what
  // the weights take, and what the device has.
  absl::StatusOr<std::vector<std::byte*>> Place(
      const std::vector<TensorHeader>& tensors) override;
  absl::StatusOr<std::unique_ptr<Copier>> NewCopier() override;

  // The buffer that begins there; an empty one where none does.
  DeviceBuffer<std::byte> Take(const std::byte* first);

  // The name of a buffer that nobody has taken; "": all are taken.
  std::string Left() const;

 private:
  struct Stack {
    std::string name;
    DeviceBuffer<std::byte> buffer;
  };

  const ModelConfig config_;
  const int device_;
  std::map<const std::byte*, Stack> stacks_;  // by their begin
};

}  // namespace invar::cuda

#endif  // INVAR_WORKER_MODEL_CUDA_DEVICE_STORE_H_
