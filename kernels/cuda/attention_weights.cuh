// What the weights of a split are relative to.
#ifndef INVAR_KERNELS_CUDA_ATTENTION_WEIGHTS_CUH_
#define INVAR_KERNELS_CUDA_ATTENTION_WEIGHTS_CUH_

#include "kernels/cuda/mma.cuh"

namespace invar::cuda {

// The reference, a score times log2 e, is the first tile's maximum until a tile
// has a score that is larger by more than this: so what has been summed is
// hardly ever rescaled. -inf before the first tile.
inline constexpr float kScoreHeadroom = 8.0f;
__device__ inline float NextReference(float reference, float tile_max) {
  return tile_max > reference + kScoreHeadroom ? tile_max : reference;
}

// What has been summed so far is multiplied with: nothing, at the first tile.
__device__ inline float RescaleFactor(float reference, float next) {
  return reference == -INFINITY ? 1.0f : Exp2(reference - next);
}

// log2 of how much larger weights are as operands: fp16's stay below its
// largest number, and clear of its subnormals.
template <typename Operand>
inline constexpr float kWeightShift =
    std::is_same_v<Operand, __half> ? 15.0f - kScoreHeadroom : 0.0f;

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_ATTENTION_WEIGHTS_CUH_
