// What config.json adds to a NumericsPlan: the same tensors with another
// rms_norm_eps are another model.
#ifndef INVAR_WORKER_MODEL_CHECKPOINT_PLAN_ENTRIES_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_PLAN_ENTRIES_H_

#include <string>
#include <utility>
#include <vector>

#include "worker/model/checkpoint/config.h"

namespace invar {

// Name and value of every field that moves a bit, names as in config.json,
// behind "model.": "model.rms_norm_eps". In a fixed order.
std::vector<std::pair<std::string, std::string>> PlanEntries(
    const ModelConfig& config);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_PLAN_ENTRIES_H_
