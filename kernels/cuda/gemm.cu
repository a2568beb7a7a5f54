#include <cuda_bf16.h>

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/gemm_tile.h"
#include "kernels/cuda/wide_gemm.h"

namespace invar::cuda {
namespace {

constexpr int kGroups = 2;  // 128 rows a block

struct Arguments {
  int rows;
  int tokens;
  int k_blocks;     // stages of 128 bytes that K takes
  int leaf_blocks;  // of one leaf
  int leaves;
  int cluster;        // thread blocks that share a tile's leaves
  bool tokens_first;  // neighbouring tiles are of the same weights
  float scale;
  const float* row_scales;
  const float* token_scales;  // (tokens), or null
  const float* block_scales;  // of weights, (ScaleBlocks(rows), k_blocks)
  const float* group_scales;  // of inputs, (tokens, k_blocks)
  void* out;
  GemmOutput type;
};

struct Place {
  int row;
  int token;
};

// Where this block's tile begins.
template <int kTokens>
__device__ Place PlaceOfTile(const Arguments& a) {
  constexpr int kRows = Tile<kTokens, 1, kGroups>::kRows;
  const int x = blockIdx.x / a.cluster;
  const int y = blockIdx.y;
  return a.tokens_first ? Place{y * kRows, x * kTokens}
                        : Place{x * kRows, y * kTokens};
}

__device__ void StoreOutput(const Arguments& a, int row, int token, float sum) {
  if (row >= a.rows || token >= a.tokens) return;
  float scale = a.row_scales == nullptr ? a.scale : a.scale * a.row_scales[row];
  if (a.token_scales != nullptr) scale *= a.token_scales[token];
  const int64_t at = static_cast<int64_t>(token) * a.rows + row;
  if (a.type == GemmOutput::kFp32) {
    static_cast<float*>(a.out)[at] = sum * scale;
  } else {
    static_cast<__nv_bfloat16*>(a.out)[at] = __float2bfloat16_rn(sum * scale);
  }
}

// The producer's copies for the tile at (row, token), from K block `first`.
template <typename TileType, int kStages>
__device__ void ProduceTile(const Ring<TileType, kStages>& ring,
                            const CUtensorMap& weights, const CUtensorMap& x,
                            int row, int token, int first, int blocks) {
  Produce<Ring<TileType, kStages>, kStages>(
      ring, threadIdx.x % 32, blocks, TileType::kStageBytes,
      [&](int lane, int stage, int b) {
        if (lane < TileType::kRowBlocks) {
          CopyBox(ring.weights(stage) + lane * TileType::kBlockBytes, &weights,
                  (first + b) * kTileRowBytes, row + lane * kProductRows,
                  &ring.full[stage]);
        }
      },
      [&](int lane, int stage, int b) {
        constexpr int kBoxes = TileType::kInputBytes / 1024;
        if (lane < kBoxes) {
          CopyBox(ring.inputs(stage) + lane * 1024, &x,
                  (first + b) * kTileRowBytes, token + lane * 8,
                  &ring.full[stage]);
        }
      });
}

// The scales of this thread's part of the tile at (row, token). Those of the
// inputs come from the kernel ahead, and so it is waited for.
template <typename Format, int kTokens>
__device__ auto ScalesOf(const Arguments& a, int row, int token,
                         int* input_row) {
  if constexpr (std::is_same_v<Format, ScaledE4m3Format>) {
    for (int t = threadIdx.x; t < kTokens; t += blockDim.x) {
      input_row[t] = min(token + t, a.tokens - 1);
    }
    __syncthreads();
    if (threadIdx.x < kGroups * 128) WaitForPriorKernel();
    const int block =
        min(row + static_cast<int>(threadIdx.x) / 128 * kProductRows,
            a.rows - 1) /
        static_cast<int>(kScaleBlock);
    return BlockScales<kTokens, 1>{
        .weights = {a.block_scales + block * a.k_blocks},
        .inputs = a.group_scales,
        .k_blocks = a.k_blocks,
        .input_row = input_row};
  } else {
    return NoScales();
  }
}

// The blocks of a cluster have neighbouring parts of K, `parts` of them, each a
// whole subtree; each block folds a share of the tile from all of them.
template <int kTokens>
__device__ void FoldCluster(const Arguments& a, std::byte* stages, int rank,
                            int parts, int row, int token,
                            const float (&sum)[kTokens / 2]) {
  using TileType = Tile<kTokens, 1, kGroups>;
  constexpr int kValues = kTokens / 2;
  const int group = threadIdx.x / 128;
  const int thread = threadIdx.x % 128;
  // (group, value, thread), over the stages, which all groups have left.
  float* sums = reinterpret_cast<float*>(stages);
  __syncthreads();
  if (group < kGroups) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      sums[(group * kValues + i) * 128 + thread] = sum[i];
    }
  }
  ClusterSync();
  const int share = kGroups * kValues * 128 / a.cluster;
  for (int e = rank * share + threadIdx.x; e < (rank + 1) * share;
       e += TileType::kThreads) {
    float place[kMaxLeaves];
#pragma unroll
    for (int i = 0; i < kMaxLeaves; ++i) {
      if (i < parts) place[i] = LoadFromRank(&sums[e], i);
    }
#pragma unroll
    for (int stride = 1; stride < kMaxLeaves; stride *= 2) {
#pragma unroll
      for (int i = 0; i < kMaxLeaves; i += 2 * stride) {
        if (i + stride < parts) place[i] += place[i + stride];
      }
    }
    const int value = e / 128 % kValues;
    StoreOutput(
        a, row + e / 128 / kValues * kProductRows + FragmentRow(e % 128, value),
        token + FragmentToken(e % 128, value), place[0]);
  }
  ClusterSync();  // no block leaves while its sums are being read
}

// A cluster shares a tile's leaves, one a block. One leaf: nothing to fold.
template <typename Format, int kTokens, int kStages>
__global__ void __launch_bounds__(Tile<kTokens, 1, kGroups>::kThreads)
    LeafKernel(const __grid_constant__ CUtensorMap weights,
               const __grid_constant__ CUtensorMap x, const Arguments a) {
  using TileType = Tile<kTokens, 1, kGroups>;
  constexpr int kValues = kTokens / 2;
  extern __shared__ std::byte shared[];
  const Ring<TileType, kStages> ring(shared);
  const int leaf = blockIdx.x % a.cluster;
  const auto [row, token] = PlaceOfTile<kTokens>(a);
  const int first = leaf * a.leaf_blocks;
  const int blocks =
      leaf < a.leaves ? min(a.leaf_blocks, a.k_blocks - first) : 0;
  if (threadIdx.x == 0) {
    Ring<TileType, kStages>(ring).Init();
  }
  AllowNextKernel();
  __syncthreads();
  __shared__ int input_row[kTokens];
  auto scales = ScalesOf<Format, kTokens>(a, row, token, input_row);
  float sum[1][kValues] = {};
  const int group = threadIdx.x / 128;
  if (group == kGroups) {
    ProduceTile<TileType, kStages>(ring, weights, x, row, token, first, blocks);
  } else if (blocks > 0) {
    Walk<kStages> walk;
    Multiply<Format, kTokens, 1, Ring<TileType, kStages>, kStages>(
        ring, walk, group, blocks, first, scales, sum);
  }
  const int thread = threadIdx.x % 128;
  WaitForPriorKernel();  // before this kernel's first write
  if (a.cluster == 1) {
    if (group == kGroups) return;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      StoreOutput(a, row + group * kProductRows + FragmentRow(thread, i),
                  token + FragmentToken(thread, i), sum[0][i]);
    }
    return;
  }
  FoldCluster<kTokens>(a, ring.stages, leaf, a.leaves, row, token, sum[0]);
}

// A block walks an aligned run of kMaxLeaves / cluster leaves: the same tree,
// as a binary counter of sums. The blocks of a cluster then fold theirs.
template <typename Format, int kTokens, int kStages>
__global__ void __launch_bounds__(Tile<kTokens, 1, kGroups>::kThreads, 1)
    WalkKernel(const __grid_constant__ CUtensorMap weights,
               const __grid_constant__ CUtensorMap x, const Arguments a) {
  using TileType = Tile<kTokens, 1, kGroups>;
  constexpr int kValues = kTokens / 2;
  constexpr int kLevels = 3;  // 2^3 places
  static_assert(1 << kLevels == kMaxLeaves);
  extern __shared__ std::byte shared[];
  const Ring<TileType, kStages> ring(shared);
  const int rank = blockIdx.x % a.cluster;
  const auto [row, token] = PlaceOfTile<kTokens>(a);
  const int run = static_cast<int>(kMaxLeaves) / a.cluster;
  const int leaves = max(0, min(run, a.leaves - rank * run));
  const int first = rank * run * a.leaf_blocks;
  const int blocks = max(0, min(leaves * a.leaf_blocks, a.k_blocks - first));
  if (threadIdx.x == 0) Ring<TileType, kStages>(ring).Init();
  AllowNextKernel();
  __syncthreads();
  __shared__ int input_row[kTokens];
  auto scales = ScalesOf<Format, kTokens>(a, row, token, input_row);
  const int group = threadIdx.x / 128;
  float sum[1][kValues] = {};
  if (group == kGroups) {
    ProduceTile<TileType, kStages>(ring, weights, x, row, token, first, blocks);
  } else {
    Walk<kStages> walk;
    float pending[kLevels][kValues];
#pragma unroll 1
    for (int leaf = 0; leaf < leaves; ++leaf) {
      const int at = leaf * a.leaf_blocks;
      Multiply<Format, kTokens, 1, Ring<TileType, kStages>, kStages>(
          ring, walk, group, min(a.leaf_blocks, blocks - at), first + at,
          scales, sum);
      // Bits of `leaf` that are 1 are sums that wait for this one; the last
      // leaf collects all that wait, since absent places are skipped.
      bool carried = true;
      const bool last = leaf + 1 == leaves;
#pragma unroll
      for (int level = 0; level < kLevels; ++level) {
        const bool waits = leaf >> level & 1;
        if (waits && (carried || last)) {
#pragma unroll
          for (int i = 0; i < kValues; ++i) sum[0][i] += pending[level][i];
        } else if (carried && !waits && !last) {
#pragma unroll
          for (int i = 0; i < kValues; ++i) pending[level][i] = sum[0][i];
          carried = false;
        }
      }
    }
  }
  WaitForPriorKernel();
  if (a.cluster > 1) {
    const int parts = (a.leaves + run - 1) / run;
    FoldCluster<kTokens>(a, ring.stages, rank, parts, row, token, sum[0]);
    return;
  }
  if (group == kGroups) return;
  const int thread = threadIdx.x % 128;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    StoreOutput(a, row + group * kProductRows + FragmentRow(thread, i),
                token + FragmentToken(thread, i), sum[0][i]);
  }
}

template <typename Format, int kTokens, bool kWalk>
void Run(const GemmWeight& weight, const GemmInput& x, Arguments a, int cluster,
         const LaunchOptions& options) {
  using TileType = Tile<kTokens, 1, kGroups>;
  // Two blocks a multiprocessor where one alone has no full pipeline.
  // One that walks fills its registers alone, and has a deep one.
  constexpr int kStages = kWalk ? 8 : kTokens <= 16 || kTokens > 64 ? 6 : 4;
  const int row_tiles = (a.rows + TileType::kRows - 1) / TileType::kRows;
  const int token_tiles = (a.tokens + kTokens - 1) / kTokens;
  a.cluster = cluster;
  // A few tiles of tokens beside each other: weights are read from memory once.
  a.tokens_first = token_tiles <= 4;
  const LaunchShape shape = {
      .grid = a.tokens_first ? dim3(token_tiles * cluster, row_tiles)
                             : dim3(row_tiles * cluster, token_tiles),
      .threads = TileType::kThreads,
      .shared_bytes = Ring<TileType, kStages>::kSharedBytes,
      .cluster = cluster};
  const auto kernel = [] {
    if constexpr (kWalk) {
      return WalkKernel<Format, kTokens, kStages>;
    } else {
      return LeafKernel<Format, kTokens, kStages>;
    }
  }();
  Launch(kernel, shape, options, "Gemm", weight.map, x.map, a);
}

template <typename Format>
void RunTile(const GemmWeight& weight, const GemmInput& x, const Arguments& a,
             GemmTile tile, const LaunchOptions& options) {
  if (tile.walk && a.leaves > 1) {
    return Run<Format, 64, true>(weight, x, a, std::max(1, tile.cluster),
                                 options);
  }
  int cluster = 1;
  while (cluster < a.leaves) cluster *= 2;
  switch (tile.tokens) {
    case 8:
      return Run<Format, 8, false>(weight, x, a, cluster, options);
    case 16:
      return Run<Format, 16, false>(weight, x, a, cluster, options);
    case 32:
      return Run<Format, 32, false>(weight, x, a, cluster, options);
    case 64:
      return Run<Format, 64, false>(weight, x, a, cluster, options);
    default:
      // Scales of 128 tokens do not fit registers.
      constexpr int kMost = std::is_same_v<Format, ScaledE4m3Format> ? 64 : 128;
      return Run<Format, kMost, false>(weight, x, a, cluster, options);
  }
}

GemmTile ChooseTile(const Arguments& a) {
  GemmTile tile;
  tile.tokens = a.tokens <= 8    ? 8
                : a.tokens <= 16 ? 16
                : a.tokens <= 32 ? 32
                : a.tokens <= 64 ? 64
                                 : 128;
  if (a.leaves == 1 || tile.tokens < 64) return tile;
  // Sums that are shared or stacked fit registers up to 64 tokens. A cluster
  // only as large as it takes to give half of the GPU's multiprocessors a
  // block.
  constexpr int64_t kEnough = 64;
  const int64_t tiles =
      static_cast<int64_t>((a.rows + 127) / 128) * ((a.tokens + 63) / 64);
  tile = {.tokens = 64, .walk = true, .cluster = 1};
  while (tile.cluster < kMaxLeaves && tiles * tile.cluster < kEnough) {
    tile.cluster *= 2;
  }
  return tile;
}

}  // namespace

void Gemm(const GemmWeight& weight, int64_t leaf, const GemmInput& x,
          int64_t tokens, GemmOutput type, void* out,
          const LaunchOptions& options, GemmTile tile) {
  if (tokens == 0) return;
  const bool many = tile.tokens == 0 ? tokens >= kWideTokens
                                     : tile.tokens == kWideGemmTile;
  if (many && WideGemmTakes(weight)) {
    return WideGemm(weight, leaf, x, tokens, type, out, options);
  }
  const int64_t bytes = WeightElementBytes(weight.dtype);
  const int64_t block = kTileRowBytes / bytes;
  const Arguments a = {
      .rows = static_cast<int>(weight.rows),
      .tokens = static_cast<int>(tokens),
      .k_blocks = static_cast<int>((weight.columns + block - 1) / block),
      .leaf_blocks = static_cast<int>(leaf / block),
      .leaves = static_cast<int>((weight.columns + leaf - 1) / leaf),
      .scale = weight.block_scales == nullptr ? weight.scale : 1.0f,
      .row_scales =
          weight.block_scales == nullptr ? weight.row_scales : nullptr,
      .token_scales = weight.block_scales == nullptr ? x.scales : nullptr,
      .block_scales = weight.block_scales,
      .group_scales = x.scales,
      .out = out,
      .type = type};
  if (tile.tokens == 0) tile = ChooseTile(a);
  switch (weight.dtype) {
    case WeightDtype::kFp8E4m3:
      if (weight.block_scales != nullptr) {
        return RunTile<ScaledE4m3Format>(weight, x, a, tile, options);
      }
      return RunTile<E4m3Format>(weight, x, a, tile, options);
    case WeightDtype::kFp16:
      return RunTile<Fp16Format>(weight, x, a, tile, options);
    default:
      return RunTile<Bf16Format>(weight, x, a, tile, options);
  }
}

}  // namespace invar::cuda
