#ifndef INVAR_WORKER_MODEL_SLICES_H_
#define INVAR_WORKER_MODEL_SLICES_H_

#include <cstdint>
#include <span>
#include <vector>

#include "worker/model/model.h"

namespace invar {

// Aborts on what breaks Forward's contract: reading past a table must not
// depend on a caller's care.
void CheckSlices(const ModelConfig& config, KvDtype kv_dtype,
                 std::span<const SequenceSlice> slices, const KvCache& cache,
                 std::span<const float> logits);

// The health of each slice: of its tokens' latents, `finite` (T), 0 where one
// was not, and of its rows of logits.
std::vector<SliceHealth> Health(const ModelConfig& config,
                                std::span<const SequenceSlice> slices,
                                std::span<const uint8_t> finite,
                                std::span<const float> logits);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_SLICES_H_
