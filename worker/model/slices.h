#ifndef INVAR_WORKER_MODEL_SLICES_H_
#define INVAR_WORKER_MODEL_SLICES_H_

#include <span>

#include "worker/model/model.h"

namespace invar {

// Aborts on what breaks Forward's contract: reading past a table must not
// depend on a caller's care.
void CheckSlices(const ModelConfig& config, KvDtype kv_dtype,
                 std::span<const SequenceSlice> slices, const KvCache& cache,
                 std::span<const float> logits);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_SLICES_H_
