// A block of 64 rows of weights walks all of K without a cluster, so nothing is
// folded. Of few tokens two warpgroups multiply runs of stages in turn, and the
// sum passes from one to the other: whoever has the parts can add them, in the
// chain's order.
#include "kernels/cuda/chain_gemm.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/gemm_store.cuh"
#include "kernels/cuda/gemm_tile.h"

namespace invar::cuda {
namespace {

// Stages that a warpgroup multiplies before it adds them to the chain.
constexpr int kRun = 8;

// A block's tile: 64 rows of weights, all of K. Of few tokens, each of kAlongK
// warpgroups multiplies runs of stages in turn; of more, each of kAlongTokens
// has tokens of its own.
template <int kGroupTokens_, int kAlongK_, int kAlongTokens_, int kStages_>
struct ChainTile {
  static constexpr int kGroupTokens = kGroupTokens_;
  static constexpr int kAlongK = kAlongK_;
  static constexpr int kAlongTokens = kAlongTokens_;
  static constexpr int kStages = kStages_;
  static_assert(kAlongK == 1 || kAlongTokens == 1);
  static constexpr int kTokens = kGroupTokens * kAlongTokens;
  static constexpr int kWeightBytes = kProductRows * kTileRowBytes;
  static constexpr int kInputBytes = kTokens * kTileRowBytes;
  static constexpr int kStageBytes = kWeightBytes + kInputBytes;
  static constexpr int kGroups = kAlongK * kAlongTokens;
  static constexpr int kThreads = 128 * kGroups + 32;
  static constexpr int kMultipliers = 128 * kAlongTokens;  // of one stage
  static constexpr int kValues = kGroupTokens / 2;         // a thread has
  static constexpr int kBoxRows = kInputBoxRows<kTokens>;
  // A group's sums, as a float4 of each lane for each quad of 8 tokens.
  static constexpr int kQuads = kValues / 4;
  static constexpr int kWarpSums = kQuads * 32;
  static constexpr int kSharedBytes =
      Ring<ChainTile, kStages>::kSharedBytes +
      kGroups * 4 * kWarpSums * static_cast<int>(sizeof(float4));
  static_assert(kSharedBytes <= 227 * 1024);
};

struct Problems {
  GemmProblem of[2];
  int first_tiles;  // of rows of the first one; the other's follow
  bool early;       // LaunchOptions
};

struct Place {
  int row;
  int token;
};

// The block of K that the producer copies as its sequence-th. The groups' runs
// come side by side, so that all groups begin early.
template <typename TileType>
__device__ int BlockOfSequence(int sequence) {
  constexpr int kTurn = TileType::kAlongK * kRun;
  const int turn = sequence / kTurn;
  const int place = sequence % kTurn;
  return turn * kTurn + place % TileType::kAlongK * kRun +
         place / TileType::kAlongK;
}

// K blocks past the last one are zeros, which change no sum.
template <typename TileType>
__device__ int Blocks(const GemmArguments& a) {
  constexpr int kTurn = TileType::kAlongK == 1 ? 1 : TileType::kAlongK * kRun;
  return (a.k_blocks + kTurn - 1) / kTurn * kTurn;
}

template <typename TileType>
__device__ void ProduceTile(const Ring<TileType, TileType::kStages>& ring,
                            const GemmProblem& p, bool early,
                            const Place& place) {
  const auto column = [&](int sequence) {
    const int block =
        TileType::kAlongK == 1 ? sequence : BlockOfSequence<TileType>(sequence);
    return block * kTileRowBytes;
  };
  if (threadIdx.x % 32 == 0) PrefetchMap(&p.x);
  const auto produce = [&](auto blocks) {
    Produce<Ring<TileType, TileType::kStages>, TileType::kStages>(
        ring, threadIdx.x % 32, blocks, TileType::kStageBytes, early,
        [&](int lane, int stage, int b) {
          if (lane == 0) {
            CopyBox(ring.weights(stage), &p.weights, column(b), place.row,
                    &ring.full[stage]);
          }
        },
        [&](int lane, int stage, int b) {
          constexpr int kBoxRows = TileType::kBoxRows;
          if (lane < TileType::kTokens / kBoxRows) {
            CopyBox(ring.inputs(stage) + lane * kBoxRows * kTileRowBytes, &p.x,
                    column(b), place.token + lane * kBoxRows,
                    &ring.full[stage]);
          }
        });
  };
  const int blocks = Blocks<TileType>(p.a);
  if (TileType::kAlongK > 1 && blocks == TileType::kStages) {
    // Written out: what a few tokens' block waits for is the last of its
    // copies, and a loop asks for one in three to four times the instructions.
    produce(std::integral_constant<int, TileType::kStages>());
  } else {
    produce(blocks);
  }
}

// The groups' runs of stages, each in its turn. A run's parts are products of
// 128 of K each, and wait in registers for the sum of all before them: this
// comes from the other group through shared memory, and goes on so. The last
// run's group has the sum, and returns true.
template <typename TileType>
__device__ bool MultiplyRuns(const Ring<TileType, TileType::kStages>& ring,
                             int group, int blocks, float4* sums,
                             float (&sum)[TileType::kValues]) {
  constexpr int kGroups = TileType::kAlongK;
  constexpr int kValues = TileType::kValues;
  constexpr int kTokens = TileType::kGroupTokens;
  static_assert(TileType::kStages == kGroups * kRun,
                "a turn of all groups fills the ring");
  const bool leader = threadIdx.x % 32 == 0;
  // Of the sum that is handed to a group: this thread's part.
  const auto place = [&](int to, int quad) -> float4& {
    return sums[(to * 4 + threadIdx.x / 32 % 4) * TileType::kWarpSums +
                quad * 32 + threadIdx.x % 32];
  };
  for (int first = 0; first < blocks; first += TileType::kStages) {
    const uint32_t phase = first / TileType::kStages % 2;
    float part[kRun][kValues];
    const auto stage = [&](int i) {
      Walk<TileType::kStages> walk = {i * kGroups + group, phase};
      return NextStage(ring, walk, /*row_block=*/0);
    };
    // Two chains of products at a time: one waits for itself.
#pragma unroll
    for (int i = 0; i < kRun; i += 2) {
      const FullStage left = stage(i);
      const FullStage right = stage(i + 1);
      ProductFence();
#pragma unroll
      for (int k = 0; k < kTileRowBytes / kProductBytes; ++k) {
        RunStep<E4m3Format, kTokens>(left, k, part[i], k != 0);
        RunStep<E4m3Format, kTokens>(right, k, part[i + 1], k != 0);
      }
      ProductCommit();
    }
    ProductWait<0>();
    const bool last_turn = first + TileType::kStages == blocks;
    if (!last_turn && leader) {
      for (int i = 0; i < kRun; ++i) ring.Release(i * kGroups + group);
    }
    if (first == 0 && group == 0) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) sum[i] = 0.0f;
    } else {
      BarrierSync(1 + group, 256);  // the sum has come
#pragma unroll
      for (int j = 0; j < TileType::kQuads; ++j) {
        const float4 quad = place(group, j);
        sum[4 * j] = quad.x;
        sum[4 * j + 1] = quad.y;
        sum[4 * j + 2] = quad.z;
        sum[4 * j + 3] = quad.w;
      }
    }
#pragma unroll
    for (int run = 0; run < kRun; ++run) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) sum[i] += part[run][i];
    }
    if (last_turn && group == kGroups - 1) return true;
    const int to = (group + 1) % kGroups;
#pragma unroll
    for (int j = 0; j < TileType::kQuads; ++j) {
      place(to, j) = {sum[4 * j], sum[4 * j + 1], sum[4 * j + 2],
                      sum[4 * j + 3]};
    }
    BarrierArrive(1 + to, 256);
  }
  return false;
}

template <typename TileType>
__global__ void __launch_bounds__(TileType::kThreads, 1)
    ChainKernel(const __grid_constant__ Problems problems) {
  constexpr int kStages = TileType::kStages;
  extern __shared__ std::byte shared[];
  const int tile = blockIdx.y;
  const int problem = tile >= problems.first_tiles;
  const GemmProblem& p = problems.of[problem];
  // Neighbouring blocks are of the same weights: they are read once.
  const Place place = {(tile - problem * problems.first_tiles) * kProductRows,
                       static_cast<int>(blockIdx.x) * TileType::kTokens};
  const Ring<TileType, kStages> ring(shared);
  if (threadIdx.x == 0) Ring<TileType, kStages>(ring).Init();
  AllowNextKernel();
  __syncthreads();
  const int group = threadIdx.x / 128;
  if (group == TileType::kGroups) {
    ProduceTile<TileType>(ring, p, problems.early, place);
    return;
  }
  float4* const sums =
      reinterpret_cast<float4*>(ring.stages + kStages * TileType::kStageBytes);
  float sum[TileType::kValues];
  int token = place.token;
  if constexpr (TileType::kAlongK > 1) {
    if (!MultiplyRuns<TileType>(ring, group, Blocks<TileType>(p.a), sums,
                                sum)) {
      return;
    }
  } else {
    Walk<kStages> walk;
    MultiplyPairs<TileType::kGroupTokens>(ring, walk, /*row_block=*/0,
                                          p.a.k_blocks, sum,
                                          group * TileType::kGroupTokens);
    token += group * TileType::kGroupTokens;
  }
  const int warp = threadIdx.x / 32 % 4;
  float4* const units = sums + (group * 4 + warp) * TileType::kWarpSums;
  __syncwarp();  // the sum that came there has been read
#pragma unroll
  for (int j = 0; j < TileType::kQuads; ++j) {
    units[j * 32 + QuadPlace(threadIdx.x % 32)] = {
        sum[4 * j], sum[4 * j + 1], sum[4 * j + 2], sum[4 * j + 3]};
  }
  WaitForPriorKernel();  // before this kernel's first write
  Output<GemmArguments> output(p.a, place.row + warp * kUnitRows, token);
  const UnitReader reader(units);
  __syncwarp();
#pragma unroll(4)
  for (int j = 0; j < TileType::kQuads; ++j) output.Store(reader(j));
}

template <typename TileType>
void Run(const GemmTasks& tasks, const LaunchOptions& options) {
  Problems p = {};
  for (int i = 0; i < tasks.count; ++i) {
    p.of[i] = MakeProblem(tasks.of[i], tasks, TileType::kBoxRows);
  }
  p.first_tiles = (p.of[0].a.rows + kProductRows - 1) / kProductRows;
  p.early = options.early;
  const LaunchShape shape = {
      .grid = dim3((tasks.tokens + TileType::kTokens - 1) / TileType::kTokens,
                   tasks.RowTiles(kProductRows)),
      .threads = TileType::kThreads,
      .shared_bytes = TileType::kSharedBytes};
  Launch(ChainKernel<TileType>, shape, options, "Gemm", p);
}

constexpr int kMostTokens = 128;  // of a block

int Blocks(const GemmTasks& tasks, int tile) {
  return (tasks.tokens + tile - 1) / tile * tasks.RowTiles(kProductRows);
}

// The smallest with which each block has a multiprocessor for itself.
int ChooseTile(const GemmTasks& tasks) {
  if (tasks.tokens <= 8) return 8;
  for (const int tile : {32, 64}) {
    if (tasks.tokens <= tile || Blocks(tasks, tile) <= kMultiprocessors) {
      return tile;
    }
  }
  return kMostTokens;
}

}  // namespace

bool ChainGemmTakes(const GemmTask& task) {
  return task.weight->dtype == WeightDtype::kFp8E4m3 &&
         task.weight->block_scales == nullptr &&
         task.leaf >= task.weight->columns;
}

bool ChainGemmFits(const GemmTasks& tasks) {
  return Blocks(tasks, kMostTokens) <= kMultiprocessors;
}

void ChainGemm(const GemmTasks& tasks, const LaunchOptions& options, int tile) {
  switch (tile == 0 ? ChooseTile(tasks) : tile) {
    case 8:
      return Run<ChainTile<8, 2, 1, 2 * kRun>>(tasks, options);
    case 32:
      return Run<ChainTile<32, 2, 1, 2 * kRun>>(tasks, options);
    case 64:
      return Run<ChainTile<64, 1, 1, 6>>(tasks, options);
    default:
      return Run<ChainTile<64, 1, 2, 8>>(tasks, options);
  }
}

}  // namespace invar::cuda
