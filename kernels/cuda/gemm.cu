// Gemm in leaves of K: blocks of a cluster walk runs of them and send their
// sums to the block that folds them, so that few rows fill the GPU and nothing
// passes through memory. Also which kernel runs a product: free, since all of
// them have the same bits.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/chain_gemm.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/gemm_problem.h"
#include "kernels/cuda/gemm_store.cuh"
#include "kernels/cuda/gemm_tile.h"
#include "kernels/cuda/tall_gemm.h"
#include "kernels/cuda/wide_chain.h"
#include "kernels/cuda/wide_gemm.h"

namespace invar::cuda {
namespace {

using Arguments = GemmArguments;
using Problem = GemmProblem;
using Tasks = GemmTasks;

// The tile of a block: 128 rows of weights by kTokens, for two warpgroups.
template <int kTokens_>
struct LeafTile : Tile<kTokens_, 1, 2> {
  static constexpr int kTokens = kTokens_;
  static constexpr int kValues = kTokens / 2;  // a thread has
  static constexpr int kBoxRows = kInputBoxRows<kTokens>;
};

// All of a launch: two products, or one, of tiles of the same kind.
struct Problems {
  Problem of[2];
  int first_tiles;    // of rows of the first one; the others' follow
  int splits;         // thread blocks that share a tile's leaves
  bool tokens_first;  // neighbouring tiles are of the same weights
  bool early;         // LaunchOptions
};

// What a block has to do.
struct Place {
  int problem;
  int row;
  int token;
  int part;  // of the leaves
};

template <typename TileType>
__device__ Place PlaceOfBlock(const Problems& p) {
  const int x = blockIdx.x / p.splits;
  const int y = blockIdx.y;
  const int tile = p.tokens_first ? y : x;
  const int problem = tile >= p.first_tiles;
  return {.problem = problem,
          .row = (tile - problem * p.first_tiles) * TileType::kRows,
          .token = (p.tokens_first ? x : y) * TileType::kTokens,
          .part = static_cast<int>(blockIdx.x % p.splits)};
}

// The producer's copies for the block at `place`, from K block `first`.
template <typename TileType, int kStages>
__device__ void ProduceTile(const Ring<TileType, kStages>& ring,
                            const Problem& p, bool early, const Place& place,
                            int first, int blocks) {
  if (threadIdx.x % 32 == 0) PrefetchMap(&p.x);
  Produce<Ring<TileType, kStages>, kStages>(
      ring, threadIdx.x % 32, blocks, TileType::kStageBytes, early,
      [&](int lane, int stage, int b) {
        if (lane < TileType::kRowBlocks) {
          CopyBox(ring.weights(stage) + lane * TileType::kBlockBytes,
                  &p.weights, (first + b) * kTileRowBytes,
                  place.row + lane * kProductRows, &ring.full[stage]);
        }
      },
      [&](int lane, int stage, int b) {
        constexpr int kBoxRows = TileType::kBoxRows;
        constexpr int kBoxes = TileType::kTokens / kBoxRows;
        if (lane < kBoxes) {
          CopyBox(ring.inputs(stage) + lane * kBoxRows * kTileRowBytes, &p.x,
                  (first + b) * kTileRowBytes, place.token + lane * kBoxRows,
                  &ring.full[stage]);
        }
      });
}

// The scales of this thread's part of the tile. Those of the inputs come from
// the kernel ahead, unless `early`, and so it is waited for.
template <typename Format, typename TileType>
__device__ auto ScalesOf(const Arguments& a, bool early, const Place& place,
                         int group, int* input_row) {
  if constexpr (std::is_same_v<Format, ScaledE4m3Format>) {
    for (int t = threadIdx.x; t < TileType::kTokens; t += blockDim.x) {
      input_row[t] = min(place.token + t, a.tokens - 1);
    }
    __syncthreads();
    if (!early && threadIdx.x < TileType::kMultipliers) WaitForPriorKernel();
    const int block = min(place.row + group * kProductRows, a.rows - 1) /
                      static_cast<int>(kScaleBlock);
    return BlockScales<TileType::kTokens, 1>{
        .weights = {a.block_scales + block * a.k_blocks},
        .inputs = a.group_scales,
        .k_blocks = a.k_blocks,
        .input_row = input_row};
  } else {
    return NoScales();
  }
}

// The sums of a tile that the blocks of a cluster have, each of its part of the
// leaves, on the way to the block that folds them. A warp's quad, 16 rows by 8
// tokens, is a unit: a float4 of each lane. Units have numbers, and block i
// folds the i-th equal run of them; they lie in its shared memory as [part]
// [unit of the run][lane].
template <typename TileType>
struct Units {
  static constexpr int kWarps = TileType::kMultipliers / 32;
  static constexpr int kQuads = TileType::kValues / 4;
  static constexpr int kCount = kWarps * kQuads;
  static constexpr int kBytes = 32 * static_cast<int>(sizeof(float4));
  static constexpr int kAllBytes = kCount * kBytes;
};

// A unit's first row and token in the tile.
template <typename TileType>
__device__ int2 PlaceOfUnit(int unit) {
  using U = Units<TileType>;
  return {unit % U::kWarps * kUnitRows, unit / U::kWarps * kUnitTokens};
}

// Whether a block's warps fold what they have multiplied: then a block's own
// sums need not be sent.
template <typename TileType>
__device__ constexpr bool KeepsOwn(int splits) {
  return Units<TileType>::kQuads % splits == 0;
}

// Of kSplits blocks, each sends its sums to those that fold them; the parts,
// each a whole subtree, become one sum and leave. Of one block they only leave.
template <typename TileType, int kSplits>
__device__ void FoldSums(const Arguments& a, const Place& place, int parts,
                         float4* received, uint64_t* arrived,
                         const float (&own)[TileType::kValues]) {
  using U = Units<TileType>;
  constexpr int kRun = U::kCount / kSplits;
  const int warp = threadIdx.x / 32;
  if (place.part < parts) {
#pragma unroll
    for (int j = 0; j < U::kQuads; ++j) {
      const int unit = j * U::kWarps + warp;
      float4* const at = received + (place.part * kRun + unit % kRun) * 32 +
                         QuadPlace(threadIdx.x % 32);
      const float4 quad = {own[4 * j], own[4 * j + 1], own[4 * j + 2],
                           own[4 * j + 3]};
      const int to = unit / kRun;
      if (KeepsOwn<TileType>(kSplits) && to == place.part) {
        *at = quad;
      } else {
        StoreAsync4(AddressInRank(at, to), quad, AddressInRank(arrived, to));
      }
    }
  }
  // All of a warp's units have the same rows.
  static_assert(kRun < U::kWarps || kRun % U::kWarps == 0);
  if (warp >= kRun) return;
  const int first = place.part * kRun + warp;
  WaitForPriorKernel();  // before this kernel's first write
  const int2 begin = PlaceOfUnit<TileType>(first);
  Output<Arguments> output(a, place.row + begin.x, place.token + begin.y);
  const UnitReader units(received + warp * 32);
  if (kSplits > 1) BarrierWaitCluster(arrived, 0);
  __syncwarp();  // a warp's own sums are there
#pragma unroll(2)
  for (int i = 0; i < kRun; i += U::kWarps) {
    float4 sum[kSplits];
#pragma unroll
    for (int p = 0; p < kSplits; ++p) {
      if (p < parts) sum[p] = units(p * kRun + i);
    }
#pragma unroll
    for (int stride = 1; stride < kSplits; stride *= 2) {
#pragma unroll
      for (int p = 0; p < kSplits; p += 2 * stride) {
        if (p + stride >= parts) continue;
        float4& to = sum[p];
        const float4& from = sum[p + stride];
        to = {to.x + from.x, to.y + from.y, to.z + from.z, to.w + from.w};
      }
    }
    output.Store(sum[0]);
  }
}

// What a block's tile takes of shared memory: the ring, then what is folded.
template <typename TileType, int kStages>
inline constexpr int kLeafSharedBytes =
    Ring<TileType, kStages>::kSharedBytes + Units<TileType>::kAllBytes;

template <typename TileType, int kRun_, int kStages_>
struct LeafShape {
  using Tile = TileType;
  static constexpr int kRun = kRun_;  // leaves a block walks
  static constexpr int kStages = kStages_;
};

// A multiplying warpgroup's work: sum = leaves [leaf, leaf + kLeaves) of those
// that are there, folded as the tree of kernels/types.h.
template <typename Format, typename TileType, int kStages, typename Scales>
struct Leaves {
  const Ring<TileType, kStages>& ring;
  Walk<kStages> walk;
  int row_block;
  int leaf_blocks;
  int leaves;
  int first;   // the run's place in K
  int blocks;  // of the run
  Scales scales;
  float4* parked;  // a tile's sums

  using Sum = float[1][TileType::kValues];

  template <int kLeaves>
  __device__ void Fold(int leaf, Sum& sum) {
    if constexpr (kLeaves == 1) {
      const int at = leaf * leaf_blocks;
      const int count = min(leaf_blocks, blocks - at);
      if constexpr (std::is_same_v<Format, E4m3Format> &&
                    TileType::kTokens <= 64) {
        MultiplyPairs<TileType::kTokens>(ring, walk, row_block, count, sum[0]);
      } else {
        Multiply<Format, TileType::kTokens, 1, Ring<TileType, kStages>,
                 kStages>(ring, walk, row_block, count, first + at, scales,
                          sum);
      }
    } else {
      constexpr int kHalf = kLeaves / 2;
      Fold<kHalf>(leaf, sum);
      if (leaf + kHalf >= leaves) return;
      if constexpr (kHalf == 4 && kPromoted<Format>) {
        // With what is promoted, four sums fit registers and no fifth.
        Park(sum);
        Fold<kHalf>(leaf + kHalf, sum);
        AddParked(sum);
      } else {
        Sum right;
        Fold<kHalf>(leaf + kHalf, right);
#pragma unroll
        for (int i = 0; i < TileType::kValues; ++i) sum[0][i] += right[0][i];
      }
    }
  }

 private:
  __device__ float4& Parked(int i) {
    return parked[i / 4 * TileType::kMultipliers + threadIdx.x];
  }
  __device__ void Park(const Sum& sum) {
#pragma unroll
    for (int i = 0; i < TileType::kValues; i += 4) {
      Parked(i) = {sum[0][i], sum[0][i + 1], sum[0][i + 2], sum[0][i + 3]};
    }
  }
  __device__ void AddParked(Sum& sum) {
#pragma unroll
    for (int i = 0; i < TileType::kValues; i += 4) {
      const float4 left = Parked(i);
      sum[0][i] += left.x;
      sum[0][i + 1] += left.y;
      sum[0][i + 2] += left.z;
      sum[0][i + 3] += left.w;
    }
    __syncwarp();  // the warp's units go there next
  }
};

// A block walks an aligned run of kRun leaves, a whole subtree; the blocks of a
// cluster then fold theirs.
template <typename Format, typename Shape>
__global__ void __launch_bounds__(Shape::Tile::kThreads, 1)
    LeafKernel(const __grid_constant__ Problems problems) {
  using TileType = typename Shape::Tile;
  constexpr int kStages = Shape::kStages;
  constexpr int kValues = TileType::kValues;
  constexpr int kRun = Shape::kRun;
  using RingType = Ring<TileType, kStages>;
  extern __shared__ std::byte shared[];
  const int splits = problems.splits;
  const Place place = PlaceOfBlock<TileType>(problems);
  const RingType ring(shared);
  const Problem& p = problems.of[place.problem];
  const Arguments a = p.a;
  const int leaves = max(0, min(kRun, a.leaves - place.part * kRun));
  const int first = place.part * kRun * a.leaf_blocks;
  const int blocks = max(0, min(leaves * a.leaf_blocks, a.k_blocks - first));
  const int parts = (a.leaves + kRun - 1) / kRun;
  __shared__ uint64_t arrived;
  if (threadIdx.x == 0) {
    if (splits > 1) BarrierInit(&arrived, 1);
    RingType(ring).Init();
    if (splits > 1) {
      const bool own = KeepsOwn<TileType>(splits) && place.part < parts;
      BarrierExpect(&arrived,
                    (parts - own) * (Units<TileType>::kAllBytes / splits));
    }
  }
  AllowNextKernel();
  __syncthreads();
  // Nothing is sent to a block before its barriers are there.
  if (splits > 1) ClusterArriveRelaxed();
  const int group = threadIdx.x / 128;
  __shared__ int input_row[TileType::kTokens];
  auto scales =
      ScalesOf<Format, TileType>(a, problems.early, place, group, input_row);
  if (threadIdx.x >= TileType::kMultipliers) {
    ProduceTile<TileType, kStages>(ring, p, problems.early, place, first,
                                   blocks);
    if (splits > 1) ClusterWait();
    return;
  }
  if (splits > 1) ClusterWait();  // while nothing has come yet
  // Of a run of all leaves nothing is received: sums are parked there.
  float4* const received =
      reinterpret_cast<float4*>(ring.stages + kStages * TileType::kStageBytes);
  float sum[1][kValues] = {};
  if (leaves > 0) {
    Leaves<Format, TileType, kStages, decltype(scales)>{
        .ring = ring,
        .row_block = group,
        .leaf_blocks = a.leaf_blocks,
        .leaves = leaves,
        .first = first,
        .blocks = blocks,
        .scales = scales,
        .parked = received}
        .template Fold<kRun>(0, sum);
  }
  const auto fold = [&]<int kSplits>() {
    if constexpr (kSplits <= Units<TileType>::kCount) {
      FoldSums<TileType, kSplits>(a, place, parts, received, &arrived, sum[0]);
    }
  };
  switch (splits) {
    case 1:
      fold.template operator()<1>();
      break;
    case 2:
      fold.template operator()<2>();
      break;
    case 4:
      fold.template operator()<4>();
      break;
    default:
      fold.template operator()<8>();
  }
}

template <typename Format, typename Shape>
void Run(const Tasks& tasks, const LaunchOptions& options) {
  using TileType = typename Shape::Tile;
  Problems p = {};
  for (int i = 0; i < tasks.count; ++i) {
    p.of[i] = MakeProblem(tasks.of[i], tasks, TileType::kBoxRows);
  }
  p.splits = 1;
  while (p.splits * Shape::kRun < tasks.Leaves()) p.splits *= 2;
  int token_tiles = (tasks.tokens + TileType::kTokens - 1) / TileType::kTokens;
  p.first_tiles = (p.of[0].a.rows + TileType::kRows - 1) / TileType::kRows;
  // A few tiles of tokens beside each other: weights are read from memory once.
  p.tokens_first = token_tiles <= 4;
  p.early = options.early;
  const int tiles = tasks.RowTiles(TileType::kRows);
  const LaunchShape shape = {
      .grid = p.tokens_first ? dim3(token_tiles * p.splits, tiles)
                             : dim3(tiles * p.splits, token_tiles),
      .threads = TileType::kThreads,
      .shared_bytes = kLeafSharedBytes<TileType, Shape::kStages>,
      .cluster = p.splits};
  Launch(LeafKernel<Format, Shape>, shape, options, "Gemm", p);
}

template <int kTokens, int kRun, int kStages>
using ShapeOf = LeafShape<LeafTile<kTokens>, kRun, kStages>;

// Scales of more than 64 tokens do not fit a thread's registers.
template <typename Format>
using WidestShape =
    ShapeOf<std::is_same_v<Format, ScaledE4m3Format> ? 64 : 128, 1, 4>;

template <typename Format, int kTokens>
void RunFew(const Tasks& tasks, GemmTile tile, const LaunchOptions& options) {
  return tile.deep ? Run<Format, ShapeOf<kTokens, 1, 6>>(tasks, options)
                   : Run<Format, ShapeOf<kTokens, 1, 4>>(tasks, options);
}

template <typename Format>
void Run64(const Tasks& tasks, GemmTile tile, const LaunchOptions& options) {
  switch (tile.run) {
    case 8:
      return Run<Format, ShapeOf<64, 8, 6>>(tasks, options);
    case 4:
      return tile.deep ? Run<Format, ShapeOf<64, 4, 6>>(tasks, options)
                       : Run<Format, ShapeOf<64, 4, 4>>(tasks, options);
    case 2:
      return Run<Format, ShapeOf<64, 2, 6>>(tasks, options);
    default:
      return Run<Format, ShapeOf<64, 1, 4>>(tasks, options);
  }
}

template <typename Format>
void RunTile(const Tasks& tasks, GemmTile tile, const LaunchOptions& options) {
  switch (tile.tokens) {
    case 8:
      return RunFew<Format, 8>(tasks, tile, options);
    case 16:
      return RunFew<Format, 16>(tasks, tile, options);
    case 32:
      return tile.run >= 2 ? Run<Format, ShapeOf<32, 2, 6>>(tasks, options)
                           : Run<Format, ShapeOf<32, 1, 4>>(tasks, options);
    case 64:
      return Run64<Format>(tasks, tile, options);
    default:
      return Run<Format, WidestShape<Format>>(tasks, options);
  }
}

GemmTile ChooseTile(const Tasks& tasks) {
  const int tokens = tasks.tokens;
  const int leaves = tasks.Leaves();
  GemmTile tile = {.tokens = tokens <= 8    ? 8
                             : tokens <= 16 ? 16
                             : tokens <= 32 ? 32
                                            : 64};
  if (leaves == 1) {
    if (tokens > 64) tile.tokens = 128;
    tile.deep = true;
    return tile;
  }
  const int64_t k_blocks = tasks.of[0].weight->columns *
                           WeightElementBytes(tasks.of[0].weight->dtype) /
                           kTileRowBytes;
  const int tiles =
      tasks.RowTiles(128) * ((tokens + tile.tokens - 1) / tile.tokens);
  if (tile.tokens < 32) {
    // Two blocks a multiprocessor need short rings.
    tile.deep = tiles * leaves <= kMultiprocessors;
    return tile;
  }
  // A block has a multiprocessor for itself. Clusters of four do not find place
  // on all of them.
  const auto fits = [&](int run) {
    const int splits = (leaves + run - 1) / run;
    const int room =
        kMultiprocessors - (tile.tokens == 64 && splits > 2 ? 12 : 0);
    return tiles * splits <= room;
  };
  tile.run = tile.tokens == 32 ? 1 : 2;
  const int most = tile.tokens == 32 ? 2 : static_cast<int>(kMaxLeaves);
  while (tile.run < most && !fits(tile.run)) tile.run *= 2;
  tile.deep = k_blocks * tile.run > 8 * leaves;
  return tile;
}

void RunDtype(const Tasks& tasks, GemmTile tile, const LaunchOptions& options) {
  const GemmWeight& weight = *tasks.of[0].weight;
  if (tile.tokens == 0) tile = ChooseTile(tasks);
  switch (weight.dtype) {
    case WeightDtype::kFp8E4m3:
      if (weight.block_scales != nullptr) {
        return RunTile<ScaledE4m3Format>(tasks, tile, options);
      }
      return RunTile<E4m3Format>(tasks, tile, options);
    case WeightDtype::kFp16:
      return RunTile<Fp16Format>(tasks, tile, options);
    default:
      return RunTile<Bf16Format>(tasks, tile, options);
  }
}

// Tasks, alike, whose K is one chain of FP8: whether one of its kernels ran, or
// one of those here where that is faster. Of as many rows and tokens as fill
// the GPU once, the smallest tiles are the best; `tile` leaves them no choice.
bool RunChain(const Tasks& tasks, GemmTile tile, const LaunchOptions& options) {
  const bool chosen = tile.tokens == 0;
  if (!chosen && !tile.chain) return false;
  bool wide = true;
  for (int i = 0; i < tasks.count; ++i) {
    if (!ChainGemmTakes(tasks.of[i])) return false;
    wide = wide && WideChainTakes(tasks.of[i], tasks.type);
  }
  if (chosen ? ChainGemmFits(tasks) : tile.tokens <= 128) {
    ChainGemm(tasks, options, tile.tokens);
    return true;
  }
  const int tiles = tasks.RowTiles(128) * ((tasks.tokens + 127) / 128);
  if (chosen && tasks.tokens > 128 && tiles <= kMultiprocessors) {
    RunDtype(tasks, {.tokens = 128, .deep = true}, options);
    return true;
  }
  if (!wide || (chosen && tasks.tokens < kWideChainTokens)) return false;
  WideChain(tasks, options, chosen ? 0 : tile.tokens == 192 ? 128 : 256);
  return true;
}

}  // namespace

void Gemm(const GemmWeight& weight, int64_t leaf, const GemmInput& x,
          int64_t tokens, GemmOutput type, void* out,
          const LaunchOptions& options, GemmTile tile) {
  if (tokens == 0) return;
  const Tasks tasks = {
      {{&weight, leaf, &x, out}}, 1, static_cast<int>(tokens), type};
  const bool chosen = tile.tokens == 0;
  const bool tall =
      chosen ? weight.rows >= kTallRows && tokens >= kTallTokens : tile.tall;
  if (!tall && RunChain(tasks, tile, options)) return;
  const bool many = chosen ? tokens >= kWideTokens
                           : tile.tokens == kWideGemmTile && !tile.tall;
  if (many && WideGemmTakes(weight)) {
    return WideGemm(weight, leaf, x, tokens, type, out, options);
  }
  if (tall && TallGemmTakes(weight, leaf)) {
    return TallGemm(weight, x, tokens, type, out, options, tile.tokens);
  }
  RunDtype(tasks, tile, options);
}

void GemmPair(const GemmTask& first, const GemmTask& second, int64_t tokens,
              GemmOutput type, const LaunchOptions& options) {
  if (tokens == 0) return;
  const auto leaves = [](const GemmTask& task) {
    return (task.weight->columns + task.leaf - 1) / task.leaf;
  };
  const bool alike = first.weight->dtype == second.weight->dtype &&
                     first.weight->columns == second.weight->columns &&
                     leaves(first) == leaves(second) &&
                     (first.weight->block_scales == nullptr) ==
                         (second.weight->block_scales == nullptr);
  const Tasks tasks = {{first, second}, 2, static_cast<int>(tokens), type};
  if (alike && RunChain(tasks, {}, options)) return;
  if (alike && tokens < kWideTokens) return RunDtype(tasks, {}, options);
  for (const GemmTask* task : {&first, &second}) {
    Gemm(*task->weight, task->leaf, *task->x, tokens, type, task->out, options);
  }
}

}  // namespace invar::cuda
