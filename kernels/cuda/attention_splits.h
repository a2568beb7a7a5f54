// Where the splits of a sequence begin: a function of the position alone, and
// so the same for a prompt's token and for a decoded one.
#ifndef INVAR_KERNELS_CUDA_ATTENTION_SPLITS_H_
#define INVAR_KERNELS_CUDA_ATTENTION_SPLITS_H_

#include <cstdint>

#include "kernels/types.h"

#ifdef __CUDACC__
#define INVAR_HOST_DEVICE __host__ __device__
#else
#define INVAR_HOST_DEVICE
#endif

namespace invar::cuda {

// Each of `tiles` tiles of kAttentionTile positions.
struct AttentionSplits {
  int32_t tiles = 0;

  INVAR_HOST_DEVICE constexpr int32_t Begin(int32_t split) const {
    return split * tiles;
  }
  // Of a sequence up to `position`.
  INVAR_HOST_DEVICE constexpr int32_t Count(int64_t position) const {
    return static_cast<int32_t>(position / kAttentionTile) / tiles + 1;
  }
};

// Splits of `split` positions each, up to whole tiles.
INVAR_HOST_DEVICE constexpr AttentionSplits EqualSplits(int64_t split) {
  return {static_cast<int32_t>((split + kAttentionTile - 1) / kAttentionTile)};
}

// Of mode DETERMINISTIC. Long, since a prompt's tokens pay for each split; a
// cluster of blocks shares one where sequences are few.
inline constexpr AttentionSplits kAttentionSplits = EqualSplits(1024);

}  // namespace invar::cuda

#undef INVAR_HOST_DEVICE

#endif  // INVAR_KERNELS_CUDA_ATTENTION_SPLITS_H_
