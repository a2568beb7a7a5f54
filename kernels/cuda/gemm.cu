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
  float scale;
  const float* row_scales;
  const float* token_scales;  // (tokens), or null
  const float* block_scales;  // of weights, (ScaleBlocks(rows), k_blocks)
  const float* group_scales;  // of inputs, (tokens, k_blocks)
  void* out;
  GemmOutput type;
};

// One product of a launch.
struct Problem {
  CUtensorMap weights;
  CUtensorMap x;
  Arguments a;
};

// All of a launch: two products, or one, of tiles of the same kind.
struct Problems {
  Problem of[2];
  int first_tiles;    // of rows of the first one; the others' follow
  int cluster;        // thread blocks that share a tile's leaves
  bool tokens_first;  // neighbouring tiles are of the same weights
  bool early;         // LaunchOptions
};

struct Place {
  int problem;
  int row;
  int token;
};

// Where this block's tile begins.
template <int kTokens>
__device__ Place PlaceOfTile(const Problems& p) {
  constexpr int kRows = Tile<kTokens, 1, kGroups>::kRows;
  const int x = blockIdx.x / p.cluster;
  const int y = blockIdx.y;
  const int tile = p.tokens_first ? y : x;
  const int problem = tile >= p.first_tiles;
  return {problem, (tile - problem * p.first_tiles) * kRows,
          (p.tokens_first ? x : y) * kTokens};
}

__device__ float Scaled(const Arguments& a, int row, int token, float sum) {
  float scale = a.row_scales == nullptr ? a.scale : a.scale * a.row_scales[row];
  if (a.token_scales != nullptr) scale *= a.token_scales[token];
  return sum * scale;
}

__device__ void StoreOutput(const Arguments& a, int row, int token, float sum) {
  if (row >= a.rows || token >= a.tokens) return;
  const float value = Scaled(a, row, token, sum);
  const int64_t at = static_cast<int64_t>(token) * a.rows + row;
  if (a.type == GemmOutput::kFp32) {
    static_cast<float*>(a.out)[at] = value;
  } else {
    static_cast<__nv_bfloat16*>(a.out)[at] = __float2bfloat16_rn(value);
  }
}

// Four neighbouring rows of a token; `row` is a multiple of four.
__device__ void StoreOutputs4(const Arguments& a, int row, int token,
                              const float (&sum)[4]) {
  if (a.type != GemmOutput::kFp32 || a.rows % 4 != 0) {
#pragma unroll
    for (int i = 0; i < 4; ++i) StoreOutput(a, row + i, token, sum[i]);
    return;
  }
  if (row >= a.rows || token >= a.tokens) return;
  float value[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) value[i] = Scaled(a, row + i, token, sum[i]);
  const int64_t at = static_cast<int64_t>(token) * a.rows + row;
  static_cast<float4*>(a.out)[at / 4] = {value[0], value[1], value[2],
                                         value[3]};
}

// The producer's copies for the tile at (row, token), from K block `first`.
template <typename TileType, int kStages>
__device__ void ProduceTile(const Ring<TileType, kStages>& ring,
                            const Problem& p, bool early, int row, int token,
                            int first, int blocks) {
  if (threadIdx.x % 32 == 0) PrefetchMap(&p.x);
  Produce<Ring<TileType, kStages>, kStages>(
      ring, threadIdx.x % 32, blocks, TileType::kStageBytes, early,
      [&](int lane, int stage, int b) {
        if (lane < TileType::kRowBlocks) {
          CopyBox(ring.weights(stage) + lane * TileType::kBlockBytes,
                  &p.weights, (first + b) * kTileRowBytes,
                  row + lane * kProductRows, &ring.full[stage]);
        }
      },
      [&](int lane, int stage, int b) {
        constexpr int kBoxes = TileType::kInputBytes / 1024;
        if (lane < kBoxes) {
          CopyBox(ring.inputs(stage) + lane * 1024, &p.x,
                  (first + b) * kTileRowBytes, token + lane * 8,
                  &ring.full[stage]);
        }
      });
}

// The scales of this thread's part of the tile at (row, token). Those of the
// inputs come from the kernel ahead, unless `early`, and so it is waited for.
template <typename Format, int kTokens>
__device__ auto ScalesOf(const Arguments& a, bool early, int row, int token,
                         int* input_row) {
  if constexpr (std::is_same_v<Format, ScaledE4m3Format>) {
    for (int t = threadIdx.x; t < kTokens; t += blockDim.x) {
      input_row[t] = min(token + t, a.tokens - 1);
    }
    __syncthreads();
    if (!early && threadIdx.x < kGroups * 128) WaitForPriorKernel();
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

// A block's sums in shared memory, a token's rows side by side. The padding
// puts what a warp stores at once into different banks.
constexpr int kSumStride = kGroups * kProductRows + 4;

// Block `rank`'s share of a tile's sums, from all blocks of the cluster. What
// comes from them is asked for eight loads at a time.
template <int kTokens, int kCluster>
__device__ void FoldShare(const Arguments& a, const float* sums, int rank,
                          int parts, int row, int token) {
  constexpr int kThreads = Tile<kTokens, 1, kGroups>::kThreads;
  constexpr int kQuads = kGroups * kProductRows / 4;  // of a token
  constexpr int kShare = kTokens * kQuads / kCluster;
  constexpr int kAtOnce = static_cast<int>(kMaxLeaves) / kCluster;
  for (int first = threadIdx.x; first < kShare; first += kAtOnce * kThreads) {
    float4 place[kAtOnce][kCluster];
    const auto token_of = [&](int j) {
      return (rank * kShare + first + j * kThreads) / kQuads;
    };
    const auto row_of = [&](int j) {
      return (first + j * kThreads) % kQuads * 4;
    };
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (first + j * kThreads >= kShare) break;
      const float* at = sums + token_of(j) * kSumStride + row_of(j);
#pragma unroll
      for (int i = 0; i < kCluster; ++i) {
        if (i < parts) place[j][i] = Load4FromRank(at, i);
      }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (first + j * kThreads >= kShare) break;
#pragma unroll
      for (int stride = 1; stride < kCluster; stride *= 2) {
#pragma unroll
        for (int i = 0; i < kCluster; i += 2 * stride) {
          if (i + stride >= parts) continue;
          float4& to = place[j][i];
          const float4& from = place[j][i + stride];
          to = {to.x + from.x, to.y + from.y, to.z + from.z, to.w + from.w};
        }
      }
      const float4& sum = place[j][0];
      StoreOutputs4(a, row + row_of(j), token + token_of(j),
                    {sum.x, sum.y, sum.z, sum.w});
    }
  }
}

// The blocks of a cluster have neighbouring parts of K, `parts` of them, each a
// whole subtree; each block folds a share of the tile from all of them.
template <int kTokens>
__device__ void FoldCluster(const Arguments& a, int cluster, std::byte* stages,
                            int rank, int parts, int row, int token,
                            const float (&sum)[kTokens / 2]) {
  constexpr int kValues = kTokens / 2;
  const int group = threadIdx.x / 128;
  const int thread = threadIdx.x % 128;
  // Over the stages, which all groups have left.
  float* sums = reinterpret_cast<float*>(stages);
  __syncthreads();
  if (group < kGroups) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      sums[FragmentToken(thread, i) * kSumStride + group * kProductRows +
           FragmentRow(thread, i)] = sum[i];
    }
  }
  ClusterSync();
  if (cluster == 2) {
    FoldShare<kTokens, 2>(a, sums, rank, parts, row, token);
  } else if (cluster == 4) {
    FoldShare<kTokens, 4>(a, sums, rank, parts, row, token);
  } else {
    FoldShare<kTokens, 8>(a, sums, rank, parts, row, token);
  }
  ClusterSync();  // no block leaves while its sums are being read
}

// Many tokens: the sums of one block leave room for a second, so that one
// begins while the other ends. What is promoted has two sets of sums.
template <typename Format, int kTokens>
inline constexpr bool kTwoBlocks = kTokens > 64 && !kPromoted<Format>;

// A cluster shares a tile's leaves, one a block. One leaf: nothing to fold.
template <typename Format, int kTokens, int kStages>
__global__ void __launch_bounds__(Tile<kTokens, 1, kGroups>::kThreads,
                                  kTwoBlocks<Format, kTokens> ? 2 : 1)
    LeafKernel(const __grid_constant__ Problems problems) {
  using TileType = Tile<kTokens, 1, kGroups>;
  constexpr int kValues = kTokens / 2;
  extern __shared__ std::byte shared[];
  const Ring<TileType, kStages> ring(shared);
  const int cluster = problems.cluster;
  const int leaf = blockIdx.x % cluster;
  const auto [problem, row, token] = PlaceOfTile<kTokens>(problems);
  const Problem& p = problems.of[problem];
  const Arguments& a = p.a;
  const int first = leaf * a.leaf_blocks;
  const int blocks =
      leaf < a.leaves ? min(a.leaf_blocks, a.k_blocks - first) : 0;
  if (threadIdx.x == 0) {
    Ring<TileType, kStages>(ring).Init();
  }
  AllowNextKernel();
  __syncthreads();
  __shared__ int input_row[kTokens];
  auto scales =
      ScalesOf<Format, kTokens>(a, problems.early, row, token, input_row);
  float sum[1][kValues] = {};
  const int group = threadIdx.x / 128;
  if (group == kGroups) {
    ProduceTile<TileType, kStages>(ring, p, problems.early, row, token, first,
                                   blocks);
  } else if (blocks > 0) {
    Walk<kStages> walk;
    Multiply<Format, kTokens, 1, Ring<TileType, kStages>, kStages>(
        ring, walk, group, blocks, first, scales, sum);
  }
  const int thread = threadIdx.x % 128;
  WaitForPriorKernel();  // before this kernel's first write
  if (cluster == 1) {
    if (group == kGroups) return;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      StoreOutput(a, row + group * kProductRows + FragmentRow(thread, i),
                  token + FragmentToken(thread, i), sum[0][i]);
    }
    return;
  }
  FoldCluster<kTokens>(a, cluster, ring.stages, leaf, a.leaves, row, token,
                       sum[0]);
}

// A block walks an aligned run of kMaxLeaves / cluster leaves: the same tree,
// as a binary counter of sums. The blocks of a cluster then fold theirs.
template <typename Format, int kTokens, int kStages>
__global__ void __launch_bounds__(Tile<kTokens, 1, kGroups>::kThreads, 1)
    WalkKernel(const __grid_constant__ Problems problems) {
  using TileType = Tile<kTokens, 1, kGroups>;
  constexpr int kValues = kTokens / 2;
  constexpr int kLevels = 3;  // 2^3 places
  static_assert(1 << kLevels == kMaxLeaves);
  extern __shared__ std::byte shared[];
  const Ring<TileType, kStages> ring(shared);
  const int cluster = problems.cluster;
  const int rank = blockIdx.x % cluster;
  const auto [problem, row, token] = PlaceOfTile<kTokens>(problems);
  const Problem& p = problems.of[problem];
  const Arguments& a = p.a;
  const int run = static_cast<int>(kMaxLeaves) / cluster;
  const int leaves = max(0, min(run, a.leaves - rank * run));
  const int first = rank * run * a.leaf_blocks;
  const int blocks = max(0, min(leaves * a.leaf_blocks, a.k_blocks - first));
  if (threadIdx.x == 0) Ring<TileType, kStages>(ring).Init();
  AllowNextKernel();
  __syncthreads();
  __shared__ int input_row[kTokens];
  auto scales =
      ScalesOf<Format, kTokens>(a, problems.early, row, token, input_row);
  const int group = threadIdx.x / 128;
  float sum[1][kValues] = {};
  if (group == kGroups) {
    ProduceTile<TileType, kStages>(ring, p, problems.early, row, token, first,
                                   blocks);
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
  if (cluster > 1) {
    const int parts = (a.leaves + run - 1) / run;
    FoldCluster<kTokens>(a, cluster, ring.stages, rank, parts, row, token,
                         sum[0]);
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
void Run(Problems& p, int cluster, const LaunchOptions& options) {
  using TileType = Tile<kTokens, 1, kGroups>;
  // Two blocks a multiprocessor where one alone has no full pipeline.
  // One that walks has room left for the end of the kernel before it.
  constexpr int kStages = kWalk                           ? 4
                          : kTwoBlocks<Format, kTokens>   ? 3
                          : kTokens <= 16 || kTokens > 64 ? 6
                                                          : 4;
  const auto row_tiles = [](const Problem& problem) {
    return (problem.a.rows + TileType::kRows - 1) / TileType::kRows;
  };
  const int tokens = p.of[0].a.tokens;
  const int token_tiles = (tokens + kTokens - 1) / kTokens;
  p.first_tiles = row_tiles(p.of[0]);
  p.cluster = cluster;
  // A few tiles of tokens beside each other: weights are read from memory once.
  p.tokens_first = token_tiles <= 4;
  p.early = options.early;
  const int tiles = p.first_tiles + row_tiles(p.of[1]);
  const LaunchShape shape = {
      .grid = p.tokens_first ? dim3(token_tiles * cluster, tiles)
                             : dim3(tiles * cluster, token_tiles),
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
  Launch(kernel, shape, options, "Gemm", p);
}

template <typename Format>
void RunTile(Problems& p, GemmTile tile, const LaunchOptions& options) {
  const int leaves = p.of[0].a.leaves;
  if (tile.walk && leaves > 1) {
    return Run<Format, 64, true>(p, std::max(1, tile.cluster), options);
  }
  int cluster = 1;
  while (cluster < leaves) cluster *= 2;
  switch (tile.tokens) {
    case 8:
      return Run<Format, 8, false>(p, cluster, options);
    case 16:
      return Run<Format, 16, false>(p, cluster, options);
    case 32:
      return Run<Format, 32, false>(p, cluster, options);
    case 64:
      return Run<Format, 64, false>(p, cluster, options);
    default:
      // Scales of 128 tokens do not fit registers.
      constexpr int kMost = std::is_same_v<Format, ScaledE4m3Format> ? 64 : 128;
      return Run<Format, kMost, false>(p, cluster, options);
  }
}

GemmTile ChooseTile(const Problems& p) {
  const int tokens = p.of[0].a.tokens;
  GemmTile tile;
  tile.tokens = tokens <= 8    ? 8
                : tokens <= 16 ? 16
                : tokens <= 32 ? 32
                : tokens <= 64 ? 64
                               : 128;
  if (p.of[0].a.leaves == 1 || tile.tokens < 64) return tile;
  // Sums that are shared or stacked fit registers up to 64 tokens. A block has
  // a multiprocessor for itself: half of an H100's at least, and two blocks a
  // tile where all have room. Larger clusters find no place while the kernel
  // before ends, and wait.
  constexpr int kMultiprocessors = 132;
  const int row_tiles =
      (p.of[0].a.rows + 127) / 128 + (p.of[1].a.rows + 127) / 128;
  const int tiles = row_tiles * ((tokens + 63) / 64);
  tile = {.tokens = 64,
          .walk = true,
          .cluster = 2 * tiles <= kMultiprocessors ? 2 : 1};
  while (tile.cluster < kMaxLeaves &&
         tiles * tile.cluster < kMultiprocessors / 2 - 2) {
    tile.cluster *= 2;
  }
  return tile;
}

Problem MakeProblem(const GemmTask& task, int64_t tokens, GemmOutput type) {
  const GemmWeight& weight = *task.weight;
  const int64_t block = kTileRowBytes / WeightElementBytes(weight.dtype);
  const bool scaled = weight.block_scales == nullptr;
  return {
      .weights = weight.map,
      .x = task.x->map,
      .a = {.rows = static_cast<int>(weight.rows),
            .tokens = static_cast<int>(tokens),
            .k_blocks = static_cast<int>((weight.columns + block - 1) / block),
            .leaf_blocks = static_cast<int>(task.leaf / block),
            .leaves =
                static_cast<int>((weight.columns + task.leaf - 1) / task.leaf),
            .scale = scaled ? weight.scale : 1.0f,
            .row_scales = scaled ? weight.row_scales : nullptr,
            .token_scales = scaled ? task.x->scales : nullptr,
            .block_scales = weight.block_scales,
            .group_scales = task.x->scales,
            .out = task.out,
            .type = type}};
}

void RunDtype(Problems& p, WeightDtype dtype, GemmTile tile,
              const LaunchOptions& options) {
  if (tile.tokens == 0) tile = ChooseTile(p);
  switch (dtype) {
    case WeightDtype::kFp8E4m3:
      if (p.of[0].a.block_scales != nullptr) {
        return RunTile<ScaledE4m3Format>(p, tile, options);
      }
      return RunTile<E4m3Format>(p, tile, options);
    case WeightDtype::kFp16:
      return RunTile<Fp16Format>(p, tile, options);
    default:
      return RunTile<Bf16Format>(p, tile, options);
  }
}

}  // namespace

void Gemm(const GemmWeight& weight, int64_t leaf, const GemmInput& x,
          int64_t tokens, GemmOutput type, void* out,
          const LaunchOptions& options, GemmTile tile) {
  if (tokens == 0) return;
  const bool many =
      tile.tokens == 0 ? tokens >= kWideTokens : tile.tokens == kWideGemmTile;
  if (many && WideGemmTakes(weight)) {
    return WideGemm(weight, leaf, x, tokens, type, out, options);
  }
  Problems problems = {};
  problems.of[0] = MakeProblem({&weight, leaf, &x, out}, tokens, type);
  RunDtype(problems, weight.dtype, tile, options);
}

void GemmPair(const GemmTask& first, const GemmTask& second, int64_t tokens,
              GemmOutput type, const LaunchOptions& options) {
  if (tokens == 0) return;
  Problems problems = {};
  problems.of[0] = MakeProblem(first, tokens, type);
  problems.of[1] = MakeProblem(second, tokens, type);
  const Arguments& a = problems.of[0].a;
  const Arguments& b = problems.of[1].a;
  const bool alike = first.weight->dtype == second.weight->dtype &&
                     a.leaves == b.leaves &&
                     (a.block_scales == nullptr) == (b.block_scales == nullptr);
  if (tokens < kWideTokens && alike) {
    return RunDtype(problems, first.weight->dtype, {}, options);
  }
  for (const GemmTask* task : {&first, &second}) {
    Gemm(*task->weight, task->leaf, *task->x, tokens, type, task->out, options);
  }
}

}  // namespace invar::cuda
