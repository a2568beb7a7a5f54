// Launches with a cluster, with dynamic shared memory over 48 KB, or with
// programmatic dependent launch.
#ifndef INVAR_KERNELS_CUDA_GEMM_LAUNCH_H_
#define INVAR_KERNELS_CUDA_GEMM_LAUNCH_H_

#include <cuda_runtime.h>

#include <utility>

#include "kernels/cuda/check.h"
#include "kernels/cuda/ops_linear.h"

namespace invar::cuda {

struct LaunchShape {
  dim3 grid;
  int threads = 0;
  int shared_bytes = 0;
  int cluster = 1;  // blocks along x
};

// Of the device in use: how many blocks to start of a kernel whose blocks go on
// from tile to tile. It moves no bit.
inline int Multiprocessors() {
  int device = 0;
  int count = 0;
  Check(cudaGetDevice(&device), "asking for the device");
  Check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "asking for the device's multiprocessors");
  return count;
}

template <typename... Parameters, typename... Arguments>
void Launch(void (*kernel)(Parameters...), const LaunchShape& shape,
            const LaunchOptions& options, const char* what,
            Arguments&&... arguments) {
  if (shape.shared_bytes > 48 * 1024) {
    Check(cudaFuncSetAttribute(kernel,
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               shape.shared_bytes),
          what);
  }
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (options.overlap) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = shape.cluster;
    attributes[count].val.clusterDim.y = 1;
    attributes[count++].val.clusterDim.z = 1;
  }
  const cudaLaunchConfig_t config = {
      .gridDim = shape.grid,
      .blockDim = dim3(shape.threads),
      .dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes),
      .stream = options.stream,
      .attrs = attributes,
      .numAttrs = count};
  Check(cudaLaunchKernelEx(&config, kernel,
                           std::forward<Arguments>(arguments)...),
        what);
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_GEMM_LAUNCH_H_
