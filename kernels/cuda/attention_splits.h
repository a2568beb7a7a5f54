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

// In tiles of kAttentionTile positions: the first `short_count` splits have
// short_tiles, all later ones long_tiles.
struct AttentionSplits {
  int32_t short_tiles = 0;
  int32_t short_count = 0;
  int32_t long_tiles = 0;

  INVAR_HOST_DEVICE constexpr int32_t Begin(int32_t split) const {
    return split < short_count
               ? split * short_tiles
               : short_count * short_tiles + (split - short_count) * long_tiles;
  }
  // The one that tile `tile` is in.
  INVAR_HOST_DEVICE constexpr int32_t Of(int32_t tile) const {
    const int32_t rest = tile - short_count * short_tiles;
    return rest < 0 ? tile / short_tiles : short_count + rest / long_tiles;
  }
  // Of a sequence up to `position`.
  INVAR_HOST_DEVICE constexpr int32_t Count(int64_t position) const {
    return Of(static_cast<int32_t>(position / kAttentionTile)) + 1;
  }
};

// Splits of `split` positions each, up to whole tiles.
INVAR_HOST_DEVICE constexpr AttentionSplits EqualSplits(int64_t split) {
  const auto tiles =
      static_cast<int32_t>((split + kAttentionTile - 1) / kAttentionTile);
  return {tiles, 0, tiles};
}

// Of mode DETERMINISTIC. Short ones while a short sequence needs them to occupy
// the GPU, long ones behind: a prompt's tokens pay for each split.
inline constexpr AttentionSplits kAttentionSplits = {4, 4, 16};
static_assert(kAttentionSplits.Of(15) == 3 && kAttentionSplits.Of(16) == 4 &&
                  kAttentionSplits.Begin(4) == 16 &&
                  kAttentionSplits.Begin(5) == 32,
              "256 positions up to 1,024, then 1,024");

}  // namespace invar::cuda

#undef INVAR_HOST_DEVICE

#endif  // INVAR_KERNELS_CUDA_ATTENTION_SPLITS_H_
