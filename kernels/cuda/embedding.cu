#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"

namespace invar::cuda {
namespace {

template <typename Element>
__global__ void EmbeddingKernel(const Element* table, const int32_t* ids,
                                int64_t hidden, float* out) {
  AllowNextKernel();
  WaitForPriorKernel();
  const int64_t token = blockIdx.y;
  const int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= hidden) return;
  out[token * hidden + k] = static_cast<float>(table[ids[token] * hidden + k]);
}

}  // namespace

void Embedding(WeightDtype dtype, const void* table, const int32_t* ids,
               int64_t tokens, int64_t hidden, float* out,
               const LaunchOptions& options) {
  if (tokens == 0) return;
  const LaunchShape shape = {.grid = dim3((hidden + 255) / 256, tokens),
                             .threads = 256};
  const auto run = [&](auto element) {
    using Element = decltype(element);
    Launch(EmbeddingKernel<Element>, shape, options, "Embedding",
           static_cast<const Element*>(table), ids, hidden, out);
  };
  switch (dtype) {
    case WeightDtype::kBf16:
      return run(__nv_bfloat16());
    case WeightDtype::kFp16:
      return run(__half());
    default:
      return run(float());
  }
}

}  // namespace invar::cuda
