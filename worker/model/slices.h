#ifndef INVAR_WORKER_MODEL_SLICES_H_
#define INVAR_WORKER_MODEL_SLICES_H_

#include <cstdint>
#include <span>
#include <vector>

#include "worker/model/model.h"

namespace invar {

// Aborts on what breaks Forward's contract: reading past a table must not
// depend on a caller's care. `logits` is the count of values that fit.
void CheckSlices(const ModelConfig& config, KvDtype kv_dtype,
                 std::span<const SequenceSlice> slices, const KvCache& cache,
                 int64_t logits);

// Aborts on more sequences, or later positions, than memory is planned for.
void CheckPlanned(std::span<const SequenceSlice> slices, int64_t sequences,
                  int64_t positions);

// Whether each row of logits is finite: 1 or 0.
std::vector<uint8_t> FiniteRows(const ModelConfig& config,
                                std::span<const float> logits);

struct SliceSize {
  int64_t tokens = 0;
  int64_t rows = 0;
};
std::vector<SliceSize> SizesOf(std::span<const SequenceSlice> slices);

// The health of each slice: of its tokens' latents and of its rows of logits, 0
// where one was not finite.
std::vector<SliceHealth> Health(std::span<const SliceSize> slices,
                                std::span<const uint8_t> finite_tokens,
                                std::span<const uint8_t> finite_rows);

// `slices` in `parts` runs of about equal cost, in order; empty where one would
// cost over an eighth more than its share. A token at position p costs
// token_cost + p: what it multiplies with weights, and with the cache.
std::vector<std::span<const SequenceSlice>> CutEvenly(
    std::span<const SequenceSlice> slices, int64_t parts, int64_t token_cost);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_SLICES_H_
