// Attention of prompts in MHA form, for mode FAST alone: keys and values of
// every head are made from the cached latents with kv_b, then attended to. A
// long prompt takes less work so than in absorbed form (fast.md), but a
// token's bits then depend on how its prompt was cut.
//
// Symbols are those of kernels/cuda/ops.h. Operands are bf16, sums fp32. The
// cached rows of a step's prompts, their own ones included, lie one after the
// other: sequence s has rows [first_row, ...), a multiple of kMhaRows, those
// past its last token zeros.
#ifndef INVAR_KERNELS_CUDA_MHA_PROMPT_H_
#define INVAR_KERNELS_CUDA_MHA_PROMPT_H_

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/ops.h"

namespace invar::cuda {

// A chunk of a prompt: consecutive tokens of the step at consecutive positions.
struct MhaSequence {
  int32_t first_token = 0;
  int32_t tokens = 0;
  int32_t first_position = 0;
  int32_t table = 0;      // its blocks are block_ids[table], ...
  int32_t first_row = 0;  // set by Add, as are those below
  int32_t first_tile = 0;
};

inline constexpr int kMhaRows = 128;    // of a tile of keys
inline constexpr int kMhaTokens = 128;  // of a tile of queries
inline constexpr int kMhaSequences = 64;

// A kernel's argument, so that nothing has to be staged.
struct MhaSequences {
  int32_t count = 0;
  int32_t rows = 0;   // of all
  int32_t tiles = 0;  // of queries
  MhaSequence of[kMhaSequences];

  // Of one, how many rows it needs.
  static int64_t RowsOf(const MhaSequence& sequence) {
    const int64_t rows = sequence.first_position + sequence.tokens;
    return (rows + kMhaRows - 1) / kMhaRows * kMhaRows;
  }
  // count < kMhaSequences.
  void Add(MhaSequence sequence) {
    sequence.first_row = rows;
    sequence.first_tile = tiles;
    rows += static_cast<int32_t>(RowsOf(sequence));
    tiles += (sequence.tokens + kMhaTokens - 1) / kMhaTokens;
    of[count++] = sequence;
  }
};

// Both halves of kv_b as one matrix, but for k.scale: weights (H, N + V, L).
// v.scale / k.scale is left to MhaAttention.
void MhaWeights(const LaunchOptions& options, const HeadProjection& k,
                const HeadProjection& v, __nv_bfloat16* weights);

// The cached rows, as they are: latents (rows, L), rope keys (rows, R).
void MhaGather(const LaunchOptions& options, const MhaSequences& sequences,
               const int32_t* block_ids, const KvLayer& cache,
               __nv_bfloat16* latents, __nv_bfloat16* rope_keys);

// query[t, h] = [q[t, h, 0:N], rotate(q[t, h, N:])].
// q (T, H, N + R) -> query (T, H, N + R)
void MhaQuery(const LaunchOptions& options, const TokenPlaces& places,
              const RopeAngles& angles, int64_t heads, const float* q,
              __nv_bfloat16* query);

// out[t, h] = value_scale * softmax_s<=t(scale * query[t, h] . key[s, h]) .
// value[s, h], of the sequences' tokens; other rows of `out` stay as they are.
// query (T, H * (N + R)); keys_values (rows, H * (N + V)): a head's key without
// rope, then its value; rope_keys (rows, R) -> out (T, H, V)
void MhaAttention(const LaunchOptions& options, const MhaSequences& sequences,
                  int64_t heads, float scale, float value_scale,
                  const GemmInput& query, const GemmInput& keys_values,
                  const GemmInput& rope_keys, const InputSink& out);

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_MHA_PROMPT_H_
