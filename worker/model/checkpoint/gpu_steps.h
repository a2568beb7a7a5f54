// The sizes of step that a GPU's launches are made for: few, so that decode
// steps repeat a few graphs.
#ifndef INVAR_WORKER_MODEL_CHECKPOINT_GPU_STEPS_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_GPU_STEPS_H_

#include <cstdint>
#include <vector>

namespace invar::cuda {

// Rows of logits that are computed at once.
inline constexpr int64_t kLogitRows = 256;

// Graphs are made of steps of at most so many tokens.
inline constexpr int64_t kGraphTokens = 256;

// The size that a decode step of `tokens` is padded to; `tokens` itself where
// no graph is made of such steps.
int64_t PaddedTokens(int64_t tokens);

// The positions that a step up to `max_position` is launched for: powers of two
// of the first split's, less one.
int64_t LaunchPosition(int64_t max_position);

// Each of them, in ascending order, of sequences of up to `positions`.
std::vector<int64_t> LaunchPositions(int64_t positions);

// Of a decode step that is a graph.
struct GraphSize {
  int64_t tokens = 0;  // padded; as many rows of logits
  int64_t max_position = 0;
  friend auto operator<=>(const GraphSize&, const GraphSize&) = default;
};

// Of all decode steps of up to `sequences` sequences of up to `positions`,
// which find at most `step_tokens` tokens' memory. In ascending order.
std::vector<GraphSize> GraphSizes(int64_t sequences, int64_t positions,
                                  int64_t step_tokens);

}  // namespace invar::cuda

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_GPU_STEPS_H_
