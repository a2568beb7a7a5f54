// The experts' products, and dense gate and up, with many tokens.
//
// What such a product ends with costs as much as a third of its arithmetic, so
// each scale is read once, and the tile leaves through shared memory in runs. A
// block, or a pair, takes tile after tile: the next one's operands and scales
// come while this one ends.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/silu_mul.h"
#include "kernels/cuda/wide_store.cuh"

namespace invar::cuda {
namespace {

// Gate and up, or two neighbouring row blocks of down, by 128 tokens.
using TileType = WideTile<kWideExpertTile, 2, 4>;
constexpr int kTokens = TileType::kTokens;
constexpr int kRowBlocks = TileType::kRowBlocks;

// What the end of a tile reads: made by a warp of its own, a tile ahead.
struct Ends {
  ExpertWork work;
  float factor[kRowBlocks][kProductRows];  // of the sums of a row
  float scale[kTokens];                    // of those of a token
  int row[kTokens];                        // of the output
};

struct Shared {
  Ends ends[2];
  uint64_t ends_full[2];
  uint64_t ends_empty[2];
  alignas(16) std::byte staging[TileType::kGroups][kStagingBytes<uint8_t>];
};
static_assert(kStagingBytes<uint8_t> >= kStagingBytes<__half> &&
              kStagingBytes<uint8_t> >= kStagingBytes<float>);
constexpr int kSharedBytes =
    Ring<TileType, TileType::kStages>::kSharedBytes + sizeof(Shared);
static_assert(kSharedBytes <= 227 * 1024);

// The tiles of a launch: of neighbouring entries of the work, one for each
// block of a cluster, and of some rows. Those of the same tokens lie side by
// side.
template <bool kGateUp>
struct Tiles {
  // Rows of the output that a tile, and that a group makes.
  static constexpr int kGroupRows = (kGateUp ? 1 : 2) * kProductRows;
  static constexpr int kRows = TileType::kGroups * kGroupRows;

  const ExpertArguments& a;
  int blocks;  // of a cluster
  int across;
  int items;
  int first;  // of this cluster's tiles; it takes every step-th of count
  int step;
  int count;

  __device__ explicit Tiles(const ExpertArguments& a)
      : a(a),
        blocks(ClusterBlocks()),
        across((a.rows + kRows - 1) / kRows),
        items(a.work == nullptr ? (a.tokens + kTokens - 1) / kTokens
                                : *a.work_count),
        first(blockIdx.x / blocks),
        step(gridDim.x / blocks),
        count((items + blocks - 1) / blocks * across) {}
  __device__ int FirstRow(int tile) const { return tile % across * kRows; }
  // Of the block that is `rank` in its cluster. Past the last entry it
  // multiplies what the other one does, and stores nothing.
  __device__ ExpertWork Work(int tile, int rank) const {
    const int item = min(tile / across * blocks + rank, items - 1);
    ExpertWork work =
        a.work != nullptr
            ? a.work[item]
            : ExpertWork{0, item * kTokens,
                         min(kTokens, a.tokens - item * kTokens), 0};
    if (item < tile / across * blocks + rank) work.count = 0;
    return work;
  }
  // Of all experts' weights: where row block i of the tile begins.
  __device__ int WeightRow(int expert, int first_row, int i) const {
    return expert * a.rows * (kGateUp ? 2 : 1) + first_row +
           (kGateUp ? i / 2 * kProductRows + i % 2 * a.rows : i * kProductRows);
  }
};

// By one warp.
template <bool kGateUp>
__device__ void FindEnds(const Tiles<kGateUp>& tiles, int tile, int rank,
                         Ends& ends) {
  const ExpertArguments& a = tiles.a;
  const int lane = threadIdx.x % 32;
  const ExpertWork work = tiles.Work(tile, rank);
  const int first_row = tiles.FirstRow(tile);
  if (lane == 0) ends.work = work;
#pragma unroll
  for (int t = lane; t < kTokens; t += 32) {
    const int place = work.first + min(t, max(work.count, 1) - 1);
    ends.row[t] = kGateUp ? place : a.order[place];
    ends.scale[t] = a.token_scales == nullptr ? 1.0f : a.token_scales[place];
  }
#pragma unroll
  for (int i = 0; i < kRowBlocks; ++i) {
    const bool up = kGateUp && i % 2 == 1;
    const float* const scales = up ? a.up_scales : a.scales;
    const float own = up ? a.up_scale : a.scale;
    const float scale = scales == nullptr ? own : own * scales[work.expert];
#pragma unroll
    for (int r = lane; r < kProductRows; r += 32) {
      // Past the last row of the matrix nothing is stored.
      const int past =
          first_row + (kGateUp ? i / 2 : i) * kProductRows + r - (a.rows - 1);
      const int row = tiles.WeightRow(work.expert, first_row, i) + r;
      ends.factor[i][r] =
          scale *
          (a.row_scales == nullptr ? 1.0f : a.row_scales[row - max(past, 0)]);
    }
  }
}

// As those of wide_store.cuh.
struct ToE4m3 : E4m3Input {
  using Element = __nv_fp8_storage_t;
  using E4m3Input::E4m3Input;
};

// Both row blocks' sums, times their scales, in place; of gate and up the first
// becomes their SwiGLU.
template <bool kGateUp, int kValues>
__device__ void FinishSums(bool token_scales, const Ends& ends, int group,
                           float (&sum)[2][kValues]) {
  const int thread = threadIdx.x % 128;
  float factor[2][2];  // of row block m, and of its rows g and g + 8
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      factor[m][h] = ends.factor[2 * group + m][FragmentRow(thread, 2 * h)];
    }
  }
  if (token_scales) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const float scale = ends.scale[FragmentToken(thread, i)];
#pragma unroll
      for (int m = 0; m < 2; ++m) sum[m][i] *= factor[m][i / 2 % 2] * scale;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
#pragma unroll
      for (int m = 0; m < 2; ++m) sum[m][i] *= factor[m][i / 2 % 2];
    }
  }
  if constexpr (kGateUp) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) sum[0][i] = SwiGlu(sum[0][i], sum[1][i]);
  }
}

template <bool kGateUp, int kValues>
__device__ void StoreSums(const ExpertArguments& a, const Ends& ends, int group,
                          int first_row, std::byte* staging,
                          float (&sum)[2][kValues]) {
  FinishSums<kGateUp>(a.token_scales != nullptr, ends, group, sum);
  const auto row_of = [&](int token) {
    return static_cast<int64_t>(ends.row[token]);
  };
  const auto store = [&]<typename Convert>(const Convert& convert, void* out,
                                           int m) {
    StoreBlock(convert, row_of, ends.work.count, a.rows,
               first_row + m * kProductRows, staging,
               static_cast<typename Convert::Element*>(out), sum[m]);
  };
  if constexpr (!kGateUp) {
    store(ToBf16(), a.slots, 0);
    store(ToBf16(), a.slots, 1);
  } else {
    const InputSink& sink = a.activated;
    switch (sink.dtype) {
      case WeightDtype::kFp8E4m3:
        return store(ToE4m3(sink.scale), sink.data, 0);
      case WeightDtype::kFp16:
        return store(ToFp16(), sink.data, 0);
      case WeightDtype::kBf16:
        return store(ToBf16(), sink.data, 0);
      case WeightDtype::kFp32:
        return store(ToFp32(), sink.data, 0);
    }
  }
}

// The third warpgroup's: one warp copies operands, one makes Ends.
template <bool kGateUp>
__device__ void Prepare(const Tiles<kGateUp>& tiles, int rank,
                        const WideRing<TileType>& ring, Shared& shared,
                        const CUtensorMap* weights, const CUtensorMap* x) {
  const int warp = threadIdx.x / 32 % 4;
  if (warp == 0) {
    Walk<TileType::kStages> walk;
    for (int tile = tiles.first; tile < tiles.count; tile += tiles.step) {
      const ExpertWork work = tiles.Work(tile, rank);
      const bool common =
          ring.paired && tiles.Work(tile, 1 - rank).expert == work.expert;
      const int row = tiles.FirstRow(tile);
      ProduceWide<TileType>(
          ring, walk, rank, common, weights,
          [&](int i) { return tiles.WeightRow(work.expert, row, i); }, x,
          /*x_rest=*/nullptr, work.first, tiles.a.k_blocks, work.count);
    }
  } else if (warp == 1) {
    Walk<2> walk;
    for (int tile = tiles.first; tile < tiles.count; tile += tiles.step) {
      BarrierWait(&shared.ends_empty[walk.stage], walk.phase ^ 1);
      FindEnds<kGateUp>(tiles, tile, rank, shared.ends[walk.stage]);
      BarrierArrive(&shared.ends_full[walk.stage]);
      walk.Advance();
    }
  }
  __syncwarp();
}

template <typename Format, bool kGateUp>
__global__ void __launch_bounds__(TileType::kThreads, 1)
    WideExpertKernel(const __grid_constant__ CUtensorMap weights,
                     const __grid_constant__ CUtensorMap x,
                     const __grid_constant__ ExpertArguments a) {
  extern __shared__ std::byte memory[];
  AllowNextKernel();
  const WideRing<TileType> ring(memory);
  Shared& shared = *reinterpret_cast<Shared*>(
      ring.stages + TileType::kStages * TileType::kStageBytes);
  if (threadIdx.x == 0) {
    PrefetchMap(&weights);
    PrefetchMap(&x);
    for (int i = 0; i < 2; ++i) {
      BarrierInit(&shared.ends_full[i], 32);
      BarrierInit(&shared.ends_empty[i], TileType::kMultipliers);
    }
    WideRing<TileType>(ring).Init();
  }
  ClusterSync();
  WaitForPriorKernel();
  const Tiles<kGateUp> tiles(a);
  const int group = threadIdx.x / 128;
  if (group == TileType::kGroups) {
    ReduceRegisters<TileType::kProducerRegisters>();
    Prepare<kGateUp>(tiles, ClusterRank(), ring, shared, &weights, &x);
  } else {
    RaiseRegisters<TileType::kMultiplierRegisters>();
    if constexpr (kPromoted<Format>) BeginTurns(group);
    Walk<TileType::kStages> walk;
    Walk<2> ends;
    for (int tile = tiles.first; tile < tiles.count; tile += tiles.step) {
      const auto wait = [&] {
        BarrierWait(&shared.ends_full[ends.stage], ends.phase);
      };
      const auto store = [&](auto& sum) {
        StoreSums<kGateUp>(
            a, shared.ends[ends.stage], group,
            tiles.FirstRow(tile) + group * Tiles<kGateUp>::kGroupRows,
            shared.staging[group], sum);
      };
      if constexpr (kPromoted<Format>) {
        // The tile's first kFirst tokens, which are all that it has.
        const auto multiply = [&]<int kFirst>() {
          float sum[2][kFirst / 2];
          MultiplyChain<Format, TileType>(ring, walk, group, a.k_blocks, sum);
          store(sum);
        };
        wait();
        const int count = shared.ends[ends.stage].work.count;
        if (count > kTokens / 2) {
          multiply.template operator()<kTokens>();
        } else if (count > kTokens / 4) {
          multiply.template operator()<kTokens / 2>();
        } else {
          multiply.template operator()<kTokens / 4>();
        }
      } else {
        // Of more sizes, or by a call, sums spill.
        float sum[2][kTokens / 2];
        MultiplyChain<Format, TileType>(ring, walk, group, a.k_blocks, sum);
        wait();
        store(sum);
      }
      BarrierArrive(&shared.ends_empty[ends.stage]);
      ends.Advance();
    }
  }
  ClusterArrive();
  ClusterWait();  // no block leaves while it is sent or told anything
}

template <typename Format, bool kGateUp>
void Run(const CUtensorMap& weights, const CUtensorMap& x,
         const ExpertArguments& a, int64_t items,
         const LaunchOptions& options) {
  const int64_t across =
      (a.rows + Tiles<kGateUp>::kRows - 1) / Tiles<kGateUp>::kRows;
  // Pairs ask less of L2, but wait for each other: a step gains nothing by
  // pairs of FP8's gate and up, which are the fastest.
  const int blocks =
      std::is_same_v<Format, E4m3Format> && kGateUp && a.work != nullptr ? 1
                                                                         : 2;
  const LaunchShape shape = {
      .grid = dim3(blocks * static_cast<unsigned>(std::min<int64_t>(
                                Multiprocessors() / blocks,
                                (items + blocks - 1) / blocks * across))),
      .threads = TileType::kThreads,
      .shared_bytes = kSharedBytes,
      .cluster = blocks};
  Launch(WideExpertKernel<Format, kGateUp>, shape, options,
         kGateUp ? "ExpertsGateUp" : "ExpertsDown", weights, x, a);
}

template <typename Format>
void RunFormat(bool gate_up, const CUtensorMap& weights, const CUtensorMap& x,
               const ExpertArguments& a, int64_t items,
               const LaunchOptions& options) {
  return gate_up ? Run<Format, true>(weights, x, a, items, options)
                 : Run<Format, false>(weights, x, a, items, options);
}

}  // namespace

bool WideExpertsTake(WeightDtype dtype, const ExpertArguments& a,
                     bool gate_up) {
  // Rows leave in pieces of 16 bytes.
  return a.block_scales == nullptr && a.rows % 16 == 0 &&
         (!gate_up || a.work == nullptr || a.gathered) &&
         (dtype == WeightDtype::kFp8E4m3 || dtype == WeightDtype::kFp16 ||
          dtype == WeightDtype::kBf16);
}

void WideExperts(WeightDtype dtype, bool gate_up, const CUtensorMap& weights,
                 const CUtensorMap& x, const ExpertArguments& a, int64_t items,
                 const LaunchOptions& options) {
  switch (dtype) {
    case WeightDtype::kFp8E4m3:
      return RunFormat<E4m3Format>(gate_up, weights, x, a, items, options);
    case WeightDtype::kFp16:
      return RunFormat<Fp16Format>(gate_up, weights, x, a, items, options);
    default:
      return RunFormat<Bf16Format>(gate_up, weights, x, a, items, options);
  }
}

}  // namespace invar::cuda
