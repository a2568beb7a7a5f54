// Whether what a machine has can compute, decided without asking CUDA: device.h
// asks. OK, or FAILED_PRECONDITION: what is missing, what there is, what to do.
#ifndef INVAR_KERNELS_CUDA_DEVICE_CHOICE_H_
#define INVAR_KERNELS_CUDA_DEVICE_CHOICE_H_

#include <optional>
#include <string>

#include "absl/status/status.h"

namespace invar::cuda {

// "13.0" of 13000, as CUDA counts its versions.
std::string VersionText(int version);

struct GpuModel {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int major = 0;     // of its compute capability
  int minor = 0;
};

// What is known of a machine. Each fact can be asked only when those before it
// allow it: without a driver nobody counts GPUs. What was not asked decides
// nothing.
struct MachineFacts {
  int driver = 0;   // the newest CUDA that the driver runs; 0: there is none
  int runtime = 0;  // the CUDA of this build
  int index = 0;    // of the GPU that is wanted
  std::optional<int> gpus;      // how many there are
  std::optional<GpuModel> gpu;  // the one at index
};

absl::Status CheckMachine(const MachineFacts& facts);

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_DEVICE_CHOICE_H_
