// One split of a token's sequence a block, for steps that leave multiprocessors
// idle: its four tiles are scored side by side, by a group of warps each, and
// their values added in order by warps that share the latents. Every sum is
// that of mla_attention.cu, addition by addition; what waits is shorter.
#ifndef INVAR_KERNELS_CUDA_SPLIT_ATTENTION_CUH_
#define INVAR_KERNELS_CUDA_SPLIT_ATTENTION_CUH_

#include "kernels/cuda/attention_merge.cuh"
#include "kernels/cuda/attention_tile.cuh"

namespace invar::cuda {

inline constexpr int kSplitTiles = kSplit / kTile;
inline constexpr int kSplitWarps = kSplitTiles * kWarps;
inline constexpr int kSplitThreads = 32 * kSplitWarps;

template <typename Code>
struct SplitShared {
  alignas(128) std::byte rows[kSplitTiles][kTile * kRow * Code::kBytes];
  uint4 query[kSteps][32];
  uint4 weights[kSplitTiles][kWarps][32];
  float warp_max[kSplitTiles][kWarps][kHeads];
  float score_factor[kHeads];
};

// grid (T, groups of 16 heads, splits) -> partials, laid out as
// AttentionKernel's.
template <typename Code>
__global__ void __launch_bounds__(kSplitThreads, 1)
    SplitKernel(TokenPlaces places, const float* query, int heads,
                float scale_log2, const std::byte* cache, bool early,
                float* partials, int split_tiles) {
  static_assert(Code::kBytes == 1 && kSplitWarps == kHeads,
                "a split's tiles fit shared memory, a warp packs a head");
  using Operand = typename Code::Operand;
  extern __shared__ std::byte memory[];
  auto& shared = *reinterpret_cast<SplitShared<Code>*>(memory);
  AllowNextKernel();
  if (!early) WaitForPriorKernel();
  const int64_t t = blockIdx.x;
  const int position = places.positions[t];
  const int first_tile = blockIdx.z * split_tiles;
  if (first_tile * kTile > position) return;
  const int tiles = min(split_tiles, position / kTile + 1 - first_tile);
  const int my_tile = Group();
  const int first = (first_tile + my_tile) * kTile;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const auto load = [&] {
    const int64_t block =
        places.block_ids[places.tables[t] + first_tile + my_tile];
    LoadTile<Code>(cache + block * kTile * kRow * Code::kBytes, first, position,
                   shared.rows[my_tile]);
  };
  const bool ahead = early && first + kTile <= position;
  if (my_tile < tiles && ahead) load();
  WaitForPriorKernel();
  if (my_tile < tiles && !ahead) load();
  const int first_head = blockIdx.y * kHeads;
  const float scale = PackRow<Code, kRow>(
      first_head + warp < heads ? query + (t * heads + first_head + warp) * kRow
                                : nullptr,
      nullptr, warp, shared.query);
  if (lane == 0) shared.score_factor[warp] = scale_log2 / scale;
  WaitForCopies();
  __syncthreads();

  float scores[2][4];
  if (my_tile < tiles) {
    float max[2];
    Scores<Code>(shared.query, shared.rows[my_tile], scores);
    MaskScores(shared.score_factor, first + 16 * GroupWarp(), position, scores,
               max);
    if (lane % 4 == 0) {
      shared.warp_max[my_tile][GroupWarp()][lane / 4] = max[0];
      shared.warp_max[my_tile][GroupWarp()][lane / 4 + 8] = max[1];
    }
  }
  __syncthreads();
  // What the tiles before leave is multiplied with when one is added.
  float rescale[kSplitTiles][2];
  float max[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int tile = 0; tile < kSplitTiles; ++tile) {
    if (tile >= tiles) break;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float new_max = max[i];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        new_max = fmaxf(new_max, shared.warp_max[tile][w][lane / 4 + 8 * i]);
      }
      rescale[tile][i] = Exp2(max[i] - new_max);
      max[i] = new_max;
    }
    if (tile == my_tile) {
      shared.weights[tile][GroupWarp()][lane] = Weights<Operand>(scores, max);
    }
  }
  __syncthreads();

  // A warp has a quarter of the 128 latents of a warp of AttentionKernel.
  constexpr int kParts = kSplitWarps / kWarps;
  constexpr int kMySums = kSums / kParts;
  static_assert(Code::kBytes != 1 || kMySums == 16,
                "two chunks of sixteen latents");
  const int owner = warp / kParts;
  const int part = warp % kParts;
  float sum[4] = {};
  float out[kMySums / 4][4] = {};
#pragma unroll
  for (int tile = 0; tile < kSplitTiles; ++tile) {
    if (tile >= tiles) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[i] *= rescale[tile][i / 2];
#pragma unroll
      for (int n = 0; n < kMySums / 4; ++n) out[n][i] *= rescale[tile][i / 2];
    }
#pragma unroll
    for (int step = 0; step < kTile / 16; ++step) {
      const uint4 weights = shared.weights[tile][step][lane];
      Mma<Operand>(sum, weights, kOnes<Operand>, kOnes<Operand>);
      AddChunks<Code>(weights, shared.rows[tile], step, 8 * owner + 2 * part,
                      out);
    }
  }

  float* partial =
      partials + ((t * gridDim.y + blockIdx.y) * gridDim.z + blockIdx.z) *
                     int64_t{kPartialFloats};
  StoreSums<Code>(partial, owner, part * kMySums / 4, out);
  if (warp == 0 && lane % 4 == 0) {
    float* row = partial + kHeads * kLatent;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row[lane / 4 + 8 * i] = max[i];
      row[kHeads + lane / 4 + 8 * i] = sum[2 * i];
    }
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_SPLIT_ATTENTION_CUH_
