// The GPU's attention as it is, with splits a quarter as long: one half of the
// defect that split_by_batch.cu plants.
#include "kernels/types.h"

namespace invar {

inline constexpr int64_t kShortSplit = kAttentionSplit / 4;
static_assert(kShortSplit % kAttentionTile == 0);

}  // namespace invar

#define kAttentionSplit kShortSplit
#define MlaAttention MlaAttentionInShortSplits
#define AttentionWorkspaceFloats ShortWorkspaceFloats
#define FastAttentionSplit ShortFastAttentionSplit
#include "kernels/cuda/mla_attention.cu"
