// A cached row of one token: the latent's norm, the rotation of k_pe,
// quantisation and the write in one pass, by kAppendThreads threads, four
// latents a thread; the first sixteen take four elements of k_pe each as well.
#ifndef INVAR_KERNELS_CUDA_KV_APPEND_CUH_
#define INVAR_KERNELS_CUDA_KV_APPEND_CUH_

#include "kernels/cuda/block_sum.cuh"
#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/divisor.cuh"
#include "kernels/cuda/ops.h"

namespace invar::cuda {

inline constexpr int kAppendThreads = kLatent / 4;

__device__ inline bool AllFinite(float4 v) {
  return isfinite(v.x) && isfinite(v.y) && isfinite(v.z) && isfinite(v.w);
}

// (a, b) -> (a cos - b sin, a sin + b cos), two neighbouring pairs.
__device__ inline float4 Rotate(float4 v, float2 cosine, float2 sine) {
  return {v.x * cosine.x - v.y * sine.x, v.x * sine.x + v.y * cosine.x,
          v.z * cosine.y - v.w * sine.y, v.z * sine.y + v.w * cosine.y};
}

__device__ inline float4 Divided(float4 v, float scale) {
  return {v.x / scale, v.y / scale, v.z / scale, v.w / scale};
}

// Token t's. Again only after a barrier of the caller's (BlockSum).
template <typename Code>
__device__ void AppendRow(const TokenPlaces& places, const CacheRows& rows,
                          const RopeAngles& angles, int64_t t) {
  constexpr int kRopeThreads = kRope / 4;
  const int thread = threadIdx.x;
  const float* row = rows.kv_a + t * kRow;
  const int position = places.positions[t];
  const int64_t block =
      places.block_ids[places.tables[t] + position / kBlockTokens];
  std::byte* out =
      rows.cache.data +
      (block * kBlockTokens + position % kBlockTokens) * kRow * Code::kBytes;
  const float scale = rows.cache.scale;

  const float4 x = reinterpret_cast<const float4*>(row)[thread];
  const float squares =
      fmaf(x.w, x.w, fmaf(x.z, x.z, fmaf(x.y, x.y, x.x * x.x)));
  const float mean =
      BlockSum<kAppendThreads>(squares) / static_cast<float>(kLatent) +
      rows.eps;
  const Divisor root(__fsqrt_rn(mean));
  const float4 g = reinterpret_cast<const float4*>(rows.gain)[thread];
  const float4 latent = Normed(root, x, g);
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
  if (!good) rows.finite[t] = 0;
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_KV_APPEND_CUH_
