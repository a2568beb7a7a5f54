// One set of sums, since K is one chain: so tiles are larger than
// wide_gemm.cu's and move fewer bytes through shared memory. A tile's sums
// leave while the next one's first products run. Two products are one list of
// tiles.
#include <algorithm>

#include "kernels/cuda/chain_gemm.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/wide_chain.h"
#include "kernels/cuda/wide_gemm.h"
#include "kernels/cuda/wide_tile.h"

namespace invar::cuda {
namespace {

// Of one chain only the sums live, and the products that are promoted next: so
// a tile can be of 128 rows by 192 tokens, or of 256 by 128. Outputs leave in
// pieces: of 32 rows, a pair of warps', by kPieceTokens.
template <int kTokens, int kBlocks, int kPieceTokens_>
struct ChainTile : WideTile<kTokens, kBlocks, 4> {
  using Base = WideTile<kTokens, kBlocks, 4>;
  static constexpr int kRows = Base::kRowBlocks * kProductRows;
  static constexpr int kPieceTokens = kPieceTokens_;
  static_assert(kTokens % kPieceTokens == 0);
  static constexpr int kPieceRows = 32;
  static_assert(kPieceRows * sizeof(float) == kTileRowBytes);
  static constexpr int kPieceBytes = kPieceTokens * kTileRowBytes;
  static constexpr int kPieces = 2;  // a pair of warps has on the way
  static constexpr int kPairs = 2;   // of a group
  static constexpr int kSharedBytes =
      Ring<Base, Base::kStages>::kSharedBytes +
      Base::kGroups * kPairs * kPieces * kPieceBytes;
  static_assert(kSharedBytes <= 227 * 1024);
};

struct Problem {
  CUtensorMap weights;
  CUtensorMap x;
  CUtensorMap out;
  int rows;
  float scale;
  const float* row_scales;    // (rows), or null
  const float* token_scales;  // (tokens), or null
};

struct Problems {
  Problem of[2];
  int first_tiles;  // of rows of the first one; the other's follow
  int row_tiles;    // of both
  int tokens;
  int k_blocks;
};

struct Place {
  int problem;
  int row;
  int token;
};

// A block takes every gridDim.x-th tile. Rows first: weights stay in L2 while
// tokens are read from memory once.
template <typename TileType>
struct Tiles {
  const Problems& p;
  int count;

  __device__ explicit Tiles(const Problems& p)
      : p(p),
        count((p.tokens + TileType::kTokens - 1) / TileType::kTokens *
              p.row_tiles) {}
  __device__ Place operator[](int tile) const {
    const int row = tile % p.row_tiles;
    const int problem = row >= p.first_tiles;
    return {problem, (row - problem * p.first_tiles) * TileType::kRows,
            tile / p.row_tiles * TileType::kTokens};
  }
};

// Named barriers 0 to 4 are wide_tile.h's.
constexpr int kPairBarrier = 5;  // and the next three: of each pair of warps

// How a warpgroup's sums leave.
template <typename TileType>
struct Pieces {
  static constexpr int kValues = TileType::kValues;

  std::byte* staging;
  int pair;  // of the block's
  int next = 0;

  __device__ Pieces(std::byte* shared, int group)
      : pair(group * TileType::kPairs + threadIdx.x % 128 / 64) {
    staging = shared + pair * TileType::kPieces * TileType::kPieceBytes;
  }

  // The sums of 64 rows from first_row, times their scales.
  __device__ void Leave(const Problem& p, int tokens, int first_row, int token,
                        float (&sum)[kValues]) {
    const int thread = threadIdx.x % 128;
    Scale(p, tokens, first_row, token, sum);
    const bool leader = threadIdx.x % 64 == 0;
    int place[2][2];  // in a piece, of rows g and g + 8 and of two tokens
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = FragmentToken(thread, i);
      const int byte = FragmentRow(thread, i) % TileType::kPieceRows *
                       static_cast<int>(sizeof(float));
      place[i / 2][i % 2] =
          t * kTileRowBytes + (byte / 16 ^ t % 8) * 16 + byte % 16;
    }
#pragma unroll
    for (int first = 0; first < TileType::kTokens;
         first += TileType::kPieceTokens) {
      std::byte* const to = staging + next * TileType::kPieceBytes;
      if (++next == TileType::kPieces) next = 0;
      if (leader) CopyOutWait<TileType::kPieces - 1>();
      BarrierSync(kPairBarrier + pair, 64);
#pragma unroll
      for (int j = 0; j < TileType::kPieceTokens / 2; ++j) {
        *reinterpret_cast<float*>(to + place[j / 2 % 2][j % 2] +
                                  j / 4 * 8 * kTileRowBytes) =
            sum[first / 2 + j];
      }
      AsyncFence();
      BarrierSync(kPairBarrier + pair, 64);
      if (leader) {
        const int row = first_row + thread / 64 * TileType::kPieceRows;
        CopyBoxOut(&p.out, row * static_cast<int>(sizeof(float)), token + first,
                   to);
        CopyOutCommit();
      }
    }
  }

 private:
  // As Output of gemm_store.cuh.
  __device__ static void Scale(const Problem& p, int tokens, int first_row,
                               int token, float (&sum)[kValues]) {
    const int thread = threadIdx.x % 128;
    float scale[2];  // of rows g and g + 8
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = min(first_row + FragmentRow(thread, 2 * h), p.rows - 1);
      scale[h] =
          p.row_scales == nullptr ? p.scale : p.scale * p.row_scales[row];
    }
    if (p.token_scales == nullptr) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) sum[i] *= scale[i / 2 % 2];
    } else {
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        sum[i] *=
            scale[i / 2 % 2] *
            p.token_scales[min(token + FragmentToken(thread, i), tokens - 1)];
      }
    }
  }
};

// A multiplying warpgroup's work. A tile's sums leave while the next one's
// first products run; only then are their registers the next one's.
template <typename TileType>
__device__ void MultiplyTiles(const WideRing<TileType>& ring, int group,
                              const Problems& problems, std::byte* staging) {
  constexpr int kBlocks = TileType::kBlocks;
  constexpr int kValues = TileType::kValues;
  constexpr int kBlockStep = TileType::kBlockBytes / 16;
  const bool leader = threadIdx.x % 32 == 0;
  const Tiles<TileType> tiles(problems);
  Pieces<TileType> pieces(staging, group);
  Walk<TileType::kStages> walk;
  float sum[kBlocks][kValues];
  float part[kValues];
  const auto leave = [&](int tile) {
    const Place place = tiles[tile];
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      pieces.Leave(problems.of[place.problem], problems.tokens,
                   place.row + (group * kBlocks + m) * kProductRows,
                   place.token, sum[m]);
    }
  };
  // Of the stage that the walk is at; `meanwhile` runs beside the products of
  // the first row block.
  const auto multiply = [&](const auto& meanwhile) {
    const auto [weights, inputs] = WaitForStage<TileType>(ring, walk, group);
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      BeginInTurn<E4m3Format, TileType::kTokens>(
          group, weights + m * kBlockStep, inputs, part);
      if (m == 0) meanwhile();
      ProductWait<0>();
      if (m == kBlocks - 1 && leader) ring.Release(walk.stage);
#pragma unroll
      for (int i = 0; i < kValues; ++i) sum[m][i] += part[i];
    }
    walk.Advance();
  };
  int before = -1;
  for (int tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
    multiply([&] {
      if (before >= 0) leave(before);
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) sum[m][i] = 0.0f;
      }
    });
#pragma unroll 1
    for (int b = 1; b < problems.k_blocks; ++b) multiply([] {});
    before = tile;
  }
  leave(before);
}

template <typename TileType>
__global__ void __launch_bounds__(TileType::kThreads, 1)
    WideChainKernel(const __grid_constant__ Problems problems) {
  extern __shared__ std::byte shared[];
  AllowNextKernel();
  const WideRing<TileType> ring(shared);
  if (threadIdx.x == 0) WideRing<TileType>(ring).Init();
  __syncthreads();
  WaitForPriorKernel();
  const int group = threadIdx.x / 128;
  if (group == TileType::kGroups) {
    ReduceRegisters<TileType::kProducerRegisters>();
    if (threadIdx.x % 128 >= 32) return;
    const Tiles<TileType> tiles(problems);
    Walk<TileType::kStages> walk;
    for (int tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
      const Place place = tiles[tile];
      const Problem& p = problems.of[place.problem];
      ProduceWide<TileType>(
          ring, walk, /*rank=*/0, /*common=*/false, &p.weights,
          [&](int i) { return place.row + i * kProductRows; }, &p.x,
          /*x_rest=*/nullptr, place.token, problems.k_blocks);
    }
  } else {
    RaiseRegisters<TileType::kMultiplierRegisters>();
    BeginTurns(group);
    MultiplyTiles<TileType>(
        ring, group, problems,
        ring.stages + TileType::kStages * TileType::kStageBytes);
    if (threadIdx.x % 64 == 0) CopyOutEnd();
  }
}

template <typename TileType>
struct Shape {
  static int TilesOf(const GemmTasks& tasks) {
    return (tasks.tokens + TileType::kTokens - 1) / TileType::kTokens *
           tasks.RowTiles(TileType::kRows);
  }
  // Of the busiest block, in rows by tokens.
  static int64_t Work(const GemmTasks& tasks, int multiprocessors) {
    const int64_t rounds =
        (TilesOf(tasks) + multiprocessors - 1) / multiprocessors;
    return rounds * TileType::kRows * TileType::kTokens;
  }

  static void Run(const GemmTasks& tasks, const LaunchOptions& options) {
    Problems p = {};
    for (int i = 0; i < tasks.count; ++i) {
      const GemmArguments a = MakeProblem(tasks.of[i], tasks, kProductRows).a;
      p.of[i] = {.weights = tasks.of[i].weight->map,
                 .x = tasks.of[i].x->wide_map,
                 .rows = a.rows,
                 .scale = a.scale,
                 .row_scales = a.row_scales,
                 .token_scales = a.token_scales};
      Check(MakeWideOutput(a.out, a.tokens, a.rows * sizeof(float),
                           TileType::kPieceTokens, &p.of[i].out)
                ? cudaSuccess
                : cudaErrorInvalidValue,
            "describing a product's outputs");
      p.k_blocks = a.k_blocks;
    }
    p.first_tiles = (p.of[0].rows + TileType::kRows - 1) / TileType::kRows;
    p.row_tiles = tasks.RowTiles(TileType::kRows);
    p.tokens = tasks.tokens;
    const LaunchShape shape = {
        .grid = dim3(std::min(Multiprocessors(), TilesOf(tasks))),
        .threads = TileType::kThreads,
        .shared_bytes = TileType::kSharedBytes};
    Launch(WideChainKernel<TileType>, shape, options, "Gemm", p);
  }
};

using By192 = Shape<ChainTile<192, 1, 64>>;
using By128 = Shape<ChainTile<128, 2, 32>>;

}  // namespace

bool WideChainTakes(const GemmTask& task, GemmOutput type) {
  // Rows leave in pieces of 16 bytes.
  return ChainGemmTakes(task) && type == GemmOutput::kFp32 &&
         task.weight->rows % 4 == 0;
}

void WideChain(const GemmTasks& tasks, const LaunchOptions& options, int rows) {
  const int count = Multiprocessors();
  const bool by_192 =
      rows == 0 ? By192::Work(tasks, count) <= By128::Work(tasks, count)
                : rows == 128;
  return by_192 ? By192::Run(tasks, options) : By128::Run(tasks, options);
}

}  // namespace invar::cuda
