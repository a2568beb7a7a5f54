// Cached rows alone, a block a token. Steps of few tokens have them from
// AbsorbQueryAndAppend.
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/kv_append.cuh"

namespace invar::cuda {
namespace {

template <typename Code>
__global__ void __launch_bounds__(kAppendThreads)
    KvAppendKernel(TokenPlaces places, CacheRows rows, RopeAngles angles) {
  AllowNextKernel();
  WaitForPriorKernel();
  AppendRow<Code>(places, rows, angles, blockIdx.x);
}

}  // namespace

void KvAppend(const LaunchOptions& options, const TokenPlaces& places,
              const CacheRows& rows, const RopeAngles& angles) {
  if (places.tokens == 0) return;
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(places.tokens)),
                             .threads = kAppendThreads};
  DispatchKv(rows.cache.dtype, [&]<typename Code>() {
    Launch(KvAppendKernel<Code>, shape, options, "KvAppend", places, rows,
           angles);
  });
}

}  // namespace invar::cuda
