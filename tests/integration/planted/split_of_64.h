// Planted: one constant of the plan, the attention's split, is another.
#ifndef INVAR_TESTS_INTEGRATION_PLANTED_SPLIT_OF_64_H_
#define INVAR_TESTS_INTEGRATION_PLANTED_SPLIT_OF_64_H_

#include "kernels/types.h"

namespace invar {

inline constexpr int64_t kPlantedSplit = 64;
static_assert(kPlantedSplit != kAttentionSplit);
static_assert(kPlantedSplit % kAttentionTile == 0);

}  // namespace invar

#define kAttentionSplit kPlantedSplit

#endif  // INVAR_TESTS_INTEGRATION_PLANTED_SPLIT_OF_64_H_
