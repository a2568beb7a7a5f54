// The latent's norm, the rotation of k_pe, quantisation and the write to the
// cache in one pass: one block a token, four latents a thread; the first
// sixteen threads take four elements of k_pe each as well.
#include <cuda_fp8.h>

#include "kernels/cuda/block_sum.cuh"
#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/ops.h"

namespace invar::cuda {
namespace {

constexpr int kThreads = kLatent / 4;
constexpr int kRopeThreads = kRope / 4;

__device__ bool AllFinite(float4 v) {
  return isfinite(v.x) && isfinite(v.y) && isfinite(v.z) && isfinite(v.w);
}

// (a, b) -> (a cos - b sin, a sin + b cos), two neighbouring pairs.
__device__ float4 Rotate(float4 v, float2 cosine, float2 sine) {
  return {v.x * cosine.x - v.y * sine.x, v.x * sine.x + v.y * cosine.x,
          v.z * cosine.y - v.w * sine.y, v.z * sine.y + v.w * cosine.y};
}

__device__ float4 Divided(float4 v, float scale) {
  return {v.x / scale, v.y / scale, v.z / scale, v.w / scale};
}

template <typename Code>
__global__ void __launch_bounds__(kThreads)
    KvAppendKernel(TokenPlaces places, const float* kv_a, const float* gain,
                   float eps, RopeAngles angles, std::byte* cache, float scale,
                   uint8_t* finite) {
  AllowNextKernel();
  WaitForPriorKernel();
  const int64_t t = blockIdx.x;
  const int thread = threadIdx.x;
  const float* row = kv_a + t * kRow;
  const int position = places.positions[t];
  const int64_t block =
      places.block_ids[places.tables[t] + position / kBlockTokens];
  std::byte* out = cache + (block * kBlockTokens + position % kBlockTokens) *
                               kRow * Code::kBytes;

  const float4 x = reinterpret_cast<const float4*>(row)[thread];
  const float squares =
      fmaf(x.w, x.w, fmaf(x.z, x.z, fmaf(x.y, x.y, x.x * x.x)));
  const float mean =
      BlockSum<kThreads>(squares) / static_cast<float>(kLatent) + eps;
  const float root = __fsqrt_rn(mean);
  const float4 g = reinterpret_cast<const float4*>(gain)[thread];
  const float4 latent = {x.x / root * g.x, x.y / root * g.y, x.z / root * g.z,
                         x.w / root * g.w};
  Code::Store4(Divided(latent, scale), out, thread);
  bool good = AllFinite(latent);

  if (thread < kRopeThreads) {
    const int64_t angle = int64_t{position} * (kRope / 4) + thread;
    const float4 k_pe =
        Rotate(reinterpret_cast<const float4*>(row + kLatent)[thread],
               reinterpret_cast<const float2*>(angles.cosines)[angle],
               reinterpret_cast<const float2*>(angles.sines)[angle]);
    Code::Store4(Divided(k_pe, scale), out, kLatent / 4 + thread);
    good = good && AllFinite(k_pe);
  }
  if (!good) finite[t] = 0;
}

}  // namespace

void KvAppend(const LaunchOptions& options, const TokenPlaces& places,
              const float* kv_a, const float* gain, float eps,
              const RopeAngles& angles, const KvLayer& cache, uint8_t* finite) {
  if (places.tokens == 0) return;
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(places.tokens)),
                             .threads = kThreads};
  DispatchKv(cache.dtype, [&]<typename Code>() {
    Launch(KvAppendKernel<Code>, shape, options, "KvAppend", places, kv_a, gain,
           eps, angles, cache.data, cache.scale, finite);
  });
}

}  // namespace invar::cuda
