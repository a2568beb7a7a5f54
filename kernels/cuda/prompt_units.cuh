// What the warpgroups of prompt_attention.cu share: the shape of a unit of
// work, shared memory, and what they tell each other.
#ifndef INVAR_KERNELS_CUDA_PROMPT_UNITS_CUH_
#define INVAR_KERNELS_CUDA_PROMPT_UNITS_CUH_

#include "kernels/cuda/attention_merge.cuh"
#include "kernels/cuda/attention_weights.cuh"
#include "kernels/cuda/prompt_tiles.cuh"

namespace invar::cuda::prompt {

// A unit is a tile of packed queries.
inline constexpr int kTokens = kPackedTokens;
inline constexpr int kHeads = kPackedHeads;
static_assert(kHeads == kPartialHeads);
inline constexpr int kRows = kTokens * kHeads;
// Warpgroups: one scores, kValueGroups sum, one copies.
inline constexpr int kValueGroups = 2;
inline constexpr int kGroups = 1 + kValueGroups;         // that multiply
inline constexpr int kLatents = kLatent / kValueGroups;  // of a group
inline constexpr int kThreads = (kGroups + 1) * 128;
inline constexpr int kValueThreads = kValueGroups * 128;
inline constexpr int kSteps = kRow / 16;  // of a score
static_assert(kRows == kProductRows && kTile == 64 && kTile == kBlockTokens);

inline constexpr int kProducerRegisters = 24;
inline constexpr int kScoreRegisters = 104;
inline constexpr int kValueRegisters = 192;
static_assert(kProducerRegisters + kScoreRegisters +
                  kValueGroups * kValueRegisters <=
              65536 / 128);

// A tile comes in parts, blocks of columns, so that its scores begin early.
inline constexpr int kParts = 3;
inline constexpr int kPartBytes = kPromptTileBytes / kParts;
inline constexpr int kPartSteps = kSteps / kParts;
static_assert(kPartSteps % (kBlockColumns / 16) == 0);

// The tokens of a unit: their sequences' tables, -1 where there is no token,
// and positions.
struct Unit {
  int index;  // -1: there are no more
  int tables[kTokens];
  int positions[kTokens];

  // f(table, tiles, whether it is the last) for each sequence of the unit's
  // tokens, nearly always the only one. Those of a sequence lie together.
  // Once the last is known as such the unit may become another one.
  template <typename Function>
  __device__ void ForEachSequence(Function f) const {
    for (int i = 0;;) {
      const int table = tables[i];
      int tiles = 0;
      for (; i < kTokens && tables[i] == table; ++i) {
        tiles = positions[i] / kTile + 1;
      }
      const bool is_last = i == kTokens || tables[i] < 0;
      f(table, tiles, is_last);
      if (is_last) return;
    }
  }
};

// What is to be done with a tile's weights for one token.
struct Step {
  int unit;  // -1: there are no more
  int flags;
};
enum StepFlag {
  kSplitEnds = 1,
  kHasRows = 2,  // the token, in this split
  kIsFirstSplit = 4,
  kIsLastSplit = 8,
};

struct Shared {
  std::byte query[kPromptTileBytes];
  std::byte rows[2][kPromptTileBytes];
  // Of the tile that is scored last: what its values are multiplied with, what
  // the sums before it are, and the maximum so far.
  uint4 weights[kTokens][kTile / 16][32];
  float rescale[kRows];
  float reference[kRows];
  Step steps[kTokens];
  float largest[2][kValueGroups][kRows];  // of a unit's rows, and the next's
  Unit unit;
  uint64_t asked;            // queries
  uint64_t scored_all;       // and they have been read
  uint64_t full[2][kParts];  // rows
  uint64_t empty[2];
  uint64_t scored;  // weights
  uint64_t taken;
};
inline constexpr int kSharedBytes = static_cast<int>(sizeof(Shared)) + 1024;
static_assert(kSharedBytes <= 227 * 1024);

struct Arguments {
  TokenPlaces places;
  PackedQueries query;
  int heads;
  int head_groups;
  int units;
  float scale_log2;
  const std::byte* tiles;
  // What a block has merged of a unit's splits: a thread its own sums.
  float4* merged;
  int* next_unit;
  AttentionSplits cut;
  // What AbsorbValue has of the latents: their code's operands, and its factors
  // of them, (heads, L), or null.
  WeightDtype weights;
  const float* factors;
  PackedAttended out;
};
inline constexpr int kMergedFours = kRows * kLatent / 4;  // of a block
static_assert(kMergedFours % kValueThreads == 0);

__device__ inline int Group() { return threadIdx.x / 128; }
__device__ inline int GroupWarp() { return threadIdx.x / 32 % 4; }

// Units of the last tokens, which are the longest, come first.
__device__ inline int FirstToken(const Arguments& a, int unit) {
  return ((a.units - 1 - unit) / a.head_groups) * kTokens;
}
__device__ inline int FirstHead(const Arguments& a, int unit) {
  return (a.units - 1 - unit) % a.head_groups * kHeads;
}

// Of one tile after the other, throughout all units: where its rows lie, and
// the phase of their barriers.
struct Place {
  int tile = 0;

  __device__ int slot() const { return tile % 2; }
  __device__ uint32_t phase() const { return tile / 2 % 2; }
};

}  // namespace invar::cuda::prompt

#endif  // INVAR_KERNELS_CUDA_PROMPT_UNITS_CUH_
