// A digest per operation, layer and position: two runs whose bits differ are
// bisected by comparing their dumps.
#ifndef INVAR_WORKER_MODEL_DIGESTS_H_
#define INVAR_WORKER_MODEL_DIGESTS_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "worker/model/model.h"

namespace invar {

// Computes `token_ids` in chunks of `chunk` positions, wanting logits of all.
// One line "layer op position digest" each, in the order of computation: by
// layer, operation and position, whatever the chunks were. The digest is the
// first 16 hex digits of the SHA-256 of the row's fp32 values.
std::vector<std::string> DumpDigests(Model& model,
                                     std::span<const int32_t> token_ids,
                                     int64_t chunk);

// Empty if the dumps are equal, else their first differing lines.
std::string FirstDifference(const std::vector<std::string>& a,
                            const std::vector<std::string>& b);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_DIGESTS_H_
