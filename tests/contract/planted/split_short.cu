// The GPU's attention as it is, with splits a quarter as long: one half of the
// defect that split_by_batch.cu plants.
#include "kernels/cuda/attention_splits.h"

namespace invar::cuda {

inline constexpr AttentionSplits kShortSplits = {kAttentionSplits.tiles / 4};
static_assert(kShortSplits.tiles > 0);

}  // namespace invar::cuda

#define kAttentionSplits kShortSplits
#define MlaAttention MlaAttentionInShortSplits
#define AttentionWorkspaceFloats ShortWorkspaceFloats
#define FastAttentionSplits ShortFastAttentionSplits
#include "kernels/cuda/mla_attention.cu"
