// What the kernels of one token's attention share: its place in shared memory,
// the scores of sixteen cached rows, the layout of a split's result.
#ifndef INVAR_KERNELS_CUDA_ATTENTION_TILE_CUH_
#define INVAR_KERNELS_CUDA_ATTENTION_TILE_CUH_

#include "kernels/cuda/attention_weights.cuh"
#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/ops.h"

namespace invar::cuda {

inline constexpr int kHeads = 16;  // of a block: the rows of an mma
inline constexpr int kWarps = 4;   // of a group
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kTile = static_cast<int>(kAttentionTile);
static_assert(kTile == 16 * kWarps, "a warp scores sixteen rows of a tile");
static_assert(kLatent == 128 * kWarps, "a warp sums 128 latents");
static_assert(kTile == kBlockTokens, "a tile is a block's rows");

inline constexpr int kSteps = kRow / 16;     // mma steps of a score
inline constexpr int kSumTiles = 128 / 8;    // of 8 latents, a warp
inline constexpr int kSums = kSumTiles * 4;  // fp32 sums a thread has

__device__ inline int Group() { return threadIdx.x / kThreads; }
__device__ inline int GroupThread() { return threadIdx.x % kThreads; }
__device__ inline int GroupWarp() { return threadIdx.x / 32 % kWarps; }

// Named barriers; 0 is the block's own.
inline constexpr int kGroupBarrier = 1;  // and the next: of each group
__device__ inline void GroupSync() {
  BarrierSync(kGroupBarrier + Group(), kThreads);
}

// Where 16-byte chunk `chunk` of a tile's row lies: moved within its group so
// that eight rows' chunks lie in different banks for both products.
template <typename Code>
__device__ inline int Chunk(int row, int chunk) {
  const int low = (row >> 1) & 3;
  return chunk ^ (Code::kBytes == 1 ? low : low | (row & 1) << 2);
}

template <typename Code>
__device__ inline uint32_t ChunkAddress(const std::byte* rows, int row,
                                        int chunk) {
  return SharedAddress(rows + row * (kRow * Code::kBytes) +
                       16 * Chunk<Code>(row, chunk));
}

// By a group: the tile's rows up to `position`, and zeros for the rest, which
// may hold what an earlier owner of the block left there.
template <typename Code>
__device__ inline void LoadTile(const std::byte* block, int first, int position,
                                std::byte* rows) {
  constexpr int kChunks = kRow * Code::kBytes / 16;
  for (int i = GroupThread(); i < kTile * kChunks; i += kThreads) {
    const int row = i / kChunks;
    CopyAsync(ChunkAddress<Code>(rows, row, i % kChunks), block + 16 * i,
              first + row <= position);
  }
}

// scores[n]: of the warp's cached rows 8n .. 8n+7, as an mma's c. Even and odd
// steps are two chains, added at the end.
template <typename Code>
__device__ inline void Scores(const uint4 (&query)[kSteps][32],
                              const std::byte* rows, float (&scores)[2][4]) {
  using Operand = typename Code::Operand;
  constexpr int kChunkSteps = 4 / Code::kBytes;
  const int lane = threadIdx.x % 32;
  const int first = GroupWarp() * 16 + lane / 4;
  float sums[2][2][4] = {};
#pragma unroll 3
  for (int c = 0; c < kSteps / kChunkSteps; ++c) {
    uint4 codes[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int row = first + 8 * n;
      codes[n] = *reinterpret_cast<const uint4*>(
          rows + row * (kRow * Code::kBytes) +
          16 * Chunk<Code>(row, 4 * c + lane % 4));
    }
#pragma unroll
    for (int j = 0; j < kChunkSteps; ++j) {
      const uint4 q = query[c * kChunkSteps + j][lane];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const uint2 b = RightOperand<Code>(codes[n], j);
        Mma<Operand>(sums[n][j % 2], q, b.x, b.y);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] = sums[n][0][i] + sums[n][1][i];
  }
}

// Scores become products with log2 e and the attention scale; those of rows
// past `position` -inf. first: of the warp's rows. max[i]: of head lane / 4 + 8
// i.
__device__ inline void MaskScores(const float* score_factor, int first,
                                  int position, float (&scores)[2][4],
                                  float (&max)[2]) {
  const int lane = threadIdx.x % 32;
  max[0] = max[1] = -INFINITY;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first + 8 * n + lane % 4 * 2 + i % 2;
      const float factor = score_factor[lane / 4 + i / 2 * 8];
      scores[n][i] = row <= position ? scores[n][i] * factor : -INFINITY;
      max[i / 2] = fmaxf(max[i / 2], scores[n][i]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    max[i] = fmaxf(max[i], __shfl_xor_sync(0xffffffff, max[i], 1));
    max[i] = fmaxf(max[i], __shfl_xor_sync(0xffffffff, max[i], 2));
  }
}

// The exponentials of scores as the left operand of a step of P V.
template <typename Operand>
__device__ inline uint4 Weights(const float (&scores)[2][4],
                                const float (&reference)[2]) {
  uint32_t weights[4];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float offset = reference[i] - kWeightShift<Operand>;
      weights[2 * n + i] = Pack<Operand>(Exp2(scores[n][2 * i] - offset),
                                         Exp2(scores[n][2 * i + 1] - offset));
    }
  }
  return {weights[0], weights[1], weights[2], weights[3]};
}

template <typename Operand>
inline constexpr uint32_t kOnes =
    std::is_same_v<Operand, __half> ? 0x3c003c00 : 0x3f803f80;

// out += a step's weights times its sixteen rows, of the latents in 16 bytes of
// a row: 2 / kBytes sum tiles. `low` and `high` are what LoadTransposed makes
// of those bytes of rows 0 to 7, and 8 to 15.
template <typename Code>
__device__ inline void AddChunk(const uint4& weights, uint32_t low,
                                uint32_t high, float (*out)[4]) {
  using Operand = typename Code::Operand;
  if constexpr (Code::kBytes == 1) {
    Mma<Operand>(out[0], weights, Code::Pair(low, false),
                 Code::Pair(high, false));
    Mma<Operand>(out[1], weights, Code::Pair(low, true),
                 Code::Pair(high, true));
  } else {
    Mma<Operand>(out[0], weights, low, high);
  }
}

// A warp's sums of kTiles sum tiles, from `first_tile` of the 128 latents of
// warp `owner` on, to rows (heads, L). An out's i is of head lane / 4 + i / 2 *
// 8; its place in a row is what AddChunk has read.
template <typename Code, int kTiles>
__device__ inline void StoreSums(float* rows, int owner, int first_tile,
                                 const float (&out)[kTiles][4],
                                 int heads = kHeads) {
  static_assert(kTiles % 2 == 0);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int head = lane / 4 + 8 * half;
    if (head >= heads) break;
    float* row = rows + head * kLatent + 128 * owner;
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      const float* even = &out[n][2 * half];
      const float* odd = &out[n + 1][2 * half];
      if constexpr (Code::kBytes == 1) {
        *reinterpret_cast<float4*>(row + (first_tile + n) * 8 +
                                   lane % 4 * 4) = {even[0], odd[0], even[1],
                                                    odd[1]};
      } else {
        float* at = row + (first_tile + n) * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(at) = {even[0], even[1]};
        *reinterpret_cast<float2*>(at + 8) = {odd[0], odd[1]};
      }
    }
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_ATTENTION_TILE_CUH_
