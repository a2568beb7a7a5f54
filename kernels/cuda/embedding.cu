// Rows of the embedding as fp32. A token may be named by the row that the step
// before samples it in, so that a step is enqueued before its tokens are known.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/ops_sample.h"

namespace invar::cuda {
namespace {

template <typename Element>
__global__ void EmbeddingKernel(const Element* table, const StepTokens tokens,
                                int64_t hidden, float* out) {
  AllowNextKernel();
  WaitForPriorKernel();
  const int64_t token = blockIdx.y;
  const int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k == 0 && tokens.finite != nullptr) tokens.finite[token] = 1;
  if (k >= hidden) return;
  int64_t id = tokens.ids[token];
  if (id < 0) id = tokens.sampled[~id].id;
  out[token * hidden + k] = static_cast<float>(table[id * hidden + k]);
}

}  // namespace

void Embedding(WeightDtype dtype, const void* table, const StepTokens& tokens,
               int64_t count, int64_t hidden, float* out,
               const LaunchOptions& options) {
  if (count == 0) return;
  const LaunchShape shape = {.grid = dim3((hidden + 255) / 256, count),
                             .threads = 256};
  const auto run = [&](auto element) {
    using Element = decltype(element);
    Launch(EmbeddingKernel<Element>, shape, options, "Embedding",
           static_cast<const Element*>(table), tokens, hidden, out);
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
