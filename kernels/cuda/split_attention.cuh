// One split of a token's sequence a block, for steps that leave multiprocessors
// idle: four of its tiles are scored side by side, by a group of warps each,
// and their values added in order by warps that share the latents; then the
// next four. Every sum is that of mla_attention.cu, addition by addition; what
// waits is shorter.
#ifndef INVAR_KERNELS_CUDA_SPLIT_ATTENTION_CUH_
#define INVAR_KERNELS_CUDA_SPLIT_ATTENTION_CUH_

#include "kernels/cuda/attention_merge.cuh"
#include "kernels/cuda/attention_tile.cuh"

namespace invar::cuda {

inline constexpr int kRoundTiles = 4;
inline constexpr int kSplitWarps = kRoundTiles * kWarps;
inline constexpr int kSplitThreads = 32 * kSplitWarps;

template <typename Code>
struct SplitShared {
  alignas(128) std::byte rows[kRoundTiles][kTile * kRow * Code::kBytes];
  uint4 query[kSteps][32];
  uint4 weights[kRoundTiles][kWarps][32];
  float warp_max[kRoundTiles][kWarps][kHeads];
  float score_factor[kHeads];
};

// What a warp has of the split so far. A warp has a quarter of the 128 latents
// of a warp of AttentionKernel.
inline constexpr int kSplitParts = kSplitWarps / kWarps;
inline constexpr int kSplitSums = kSums / kSplitParts;
struct SplitSoftmax {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[4] = {};
  float out[kSplitSums / 4][4] = {};
};

// The scores of the group's tile, and their maxima for all.
template <typename Code>
__device__ inline void ScoreRoundTile(int first, int position,
                                      SplitShared<Code>& shared,
                                      float (&scores)[2][4]) {
  const int lane = threadIdx.x % 32;
  float max[2];
  Scores<Code>(shared.query, shared.rows[Group()], scores);
  MaskScores(shared.score_factor, first + 16 * GroupWarp(), position, scores,
             max);
  if (lane % 4 == 0) {
    shared.warp_max[Group()][GroupWarp()][lane / 4] = max[0];
    shared.warp_max[Group()][GroupWarp()][lane / 4 + 8] = max[1];
  }
}

// Adds up to four tiles whose maxima are known, in order; f(tile) once this
// warp has read one.
template <typename Code, typename Function>
__device__ inline void AddRound(int tiles, const float (&scores)[2][4],
                                SplitShared<Code>& shared,
                                SplitSoftmax& softmax, Function f) {
  using Operand = typename Code::Operand;
  static_assert(Code::kBytes != 1 || kSplitSums == 16,
                "two chunks of sixteen latents");
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  // What the tiles before leave is multiplied with when one is added.
  float rescale[kRoundTiles][2];
#pragma unroll
  for (int tile = 0; tile < kRoundTiles; ++tile) {
    if (tile >= tiles) break;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float new_max = softmax.max[i];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        new_max = fmaxf(new_max, shared.warp_max[tile][w][lane / 4 + 8 * i]);
      }
      rescale[tile][i] = Exp2(softmax.max[i] - new_max);
      softmax.max[i] = new_max;
    }
    if (tile == Group()) {
      shared.weights[tile][GroupWarp()][lane] =
          Weights<Operand>(scores, softmax.max);
    }
  }
  __syncthreads();
#pragma unroll
  for (int tile = 0; tile < kRoundTiles; ++tile) {
    if (tile >= tiles) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      softmax.sum[i] *= rescale[tile][i / 2];
#pragma unroll
      for (int n = 0; n < kSplitSums / 4; ++n) {
        softmax.out[n][i] *= rescale[tile][i / 2];
      }
    }
#pragma unroll
    for (int step = 0; step < kTile / 16; ++step) {
      const uint4 weights = shared.weights[tile][step][lane];
      Mma<Operand>(softmax.sum, weights, kOnes<Operand>, kOnes<Operand>);
      AddChunks<Code>(weights, shared.rows[tile], step,
                      8 * (warp / kSplitParts) + 2 * (warp % kSplitParts),
                      softmax.out);
    }
    f(tile);
  }
}

// grid (T, groups of 16 heads, splits) -> partials, laid out as
// AttentionKernel's.
template <typename Code>
__global__ void __launch_bounds__(kSplitThreads, 1)
    SplitKernel(TokenPlaces places, const float* query, int heads,
                float scale_log2, const std::byte* cache, bool early,
                float* partials, AttentionSplits cut) {
  static_assert(Code::kBytes == 1 && kSplitWarps == kHeads,
                "four tiles fit shared memory, a warp packs a head");
  extern __shared__ std::byte memory[];
  auto& shared = *reinterpret_cast<SplitShared<Code>*>(memory);
  AllowNextKernel();
  if (!early) WaitForPriorKernel();
  const int64_t t = blockIdx.x;
  const int position = places.positions[t];
  const int first_tile = cut.Begin(blockIdx.z);
  if (first_tile * kTile > position) return;
  const int end = min(cut.Begin(blockIdx.z + 1), position / kTile + 1);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  int my_tile = first_tile + Group();
  const auto load = [&] {
    const int64_t block = places.block_ids[places.tables[t] + my_tile];
    LoadTile<Code>(cache + block * kTile * kRow * Code::kBytes, my_tile * kTile,
                   position, shared.rows[Group()]);
  };
  const bool ahead = early && (my_tile + 1) * kTile <= position;
  if (my_tile < end && ahead) load();
  WaitForPriorKernel();
  if (my_tile < end && !ahead) load();
  const int first_head = blockIdx.y * kHeads;
  const float scale = PackRow<Code, kRow>(
      first_head + warp < heads ? query + (t * heads + first_head + warp) * kRow
                                : nullptr,
      nullptr, warp, shared.query);
  if (lane == 0) shared.score_factor[warp] = scale_log2 / scale;

  SplitSoftmax softmax;
  for (int round = first_tile;;) {
    WaitForCopies();
    __syncthreads();
    float scores[2][4];
    if (my_tile < end) {
      ScoreRoundTile<Code>(my_tile * kTile, position, shared, scores);
    }
    __syncthreads();
    const int tiles = min(kRoundTiles, end - round);
    round += kRoundTiles;
    // The next round's tiles come while this one's later ones are added.
    AddRound<Code>(tiles, scores, shared, softmax, [&](int tile) {
      if (round >= end) return;
      __syncthreads();
      if (tile != Group()) return;
      my_tile += kRoundTiles;
      if (my_tile < end) load();
    });
    if (round >= end) break;
  }

  float* partial =
      partials + ((t * gridDim.y + blockIdx.y) * gridDim.z + blockIdx.z) *
                     int64_t{kPartialFloats};
  StoreSums<Code>(partial, warp / kSplitParts,
                  warp % kSplitParts * kSplitSums / 4, softmax.out);
  if (warp == 0 && lane % 4 == 0) {
    float* row = partial + kHeads * kLatent;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row[lane / 4 + 8 * i] = softmax.max[i];
      row[kHeads + lane / 4 + 8 * i] = softmax.sum[2 * i];
    }
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_SPLIT_ATTENTION_CUH_
