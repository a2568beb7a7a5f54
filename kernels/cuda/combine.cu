#include "kernels/cuda/combine.h"
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"

namespace invar::cuda {
namespace {

__global__ void CombineKernel(const Addend addend, int64_t size,
                              float* hidden) {
  AllowNextKernel();
  WaitForPriorKernel();
  const int64_t token = blockIdx.y;
  const int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k < size) {
    hidden[token * size + k] += Combined(addend, token, size, k);
  }
}

}  // namespace

void Combine(const Addend& addend, int64_t tokens, int64_t size, float* hidden,
             const LaunchOptions& options) {
  if (tokens == 0) return;
  Launch(CombineKernel,
         {.grid = dim3((size + 255) / 256, tokens), .threads = 256}, options,
         "Combine", addend, size, hidden);
}

}  // namespace invar::cuda
