// What a layer adds to the residual stream, alone: where no norm follows that
// would do it.
#include "kernels/cuda/combine.h"
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"

namespace invar::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void CombineKernel(const Addend addend, int64_t size,
                              float* hidden) {
  AllowNextKernel();
  WaitForPriorKernel();
  const int64_t token = blockIdx.y;
  const int64_t k = 4 * (int64_t{blockIdx.x} * kThreads + threadIdx.x);
  if (k >= size) return;
  const float4 sum = Combined4(addend, token, size, k);
  float4& v = *reinterpret_cast<float4*>(hidden + token * size + k);
  v = {v.x + sum.x, v.y + sum.y, v.z + sum.z, v.w + sum.w};
}

}  // namespace

void Combine(const Addend& addend, int64_t tokens, int64_t size, float* hidden,
             const LaunchOptions& options) {
  if (tokens == 0) return;
  Launch(CombineKernel,
         {.grid = dim3((size / 4 + kThreads - 1) / kThreads, tokens),
          .threads = kThreads},
         options, "Combine", addend, size, hidden);
}

}  // namespace invar::cuda
