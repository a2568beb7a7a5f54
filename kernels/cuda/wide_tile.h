// The tile of products with many tokens: two warpgroups multiply 256 or 128
// rows of weights by 96 to 192 tokens, with nearly all of a multiprocessor's
// registers. Two thread blocks of a cluster, with neighbouring tokens, can be a
// pair: each loads a half of their common weights into both, so that L2 is
// asked for less. The chains of K are gemm_tile.h's.
#ifndef INVAR_KERNELS_CUDA_WIDE_TILE_H_
#define INVAR_KERNELS_CUDA_WIDE_TILE_H_

#include "kernels/cuda/gemm_tile.h"

namespace invar::cuda {

// kBlocks: 64-row blocks of weights a warpgroup multiplies. The third warpgroup
// produces, with one warp, and gives its registers to the others.
template <int kTokens_, int kBlocks_, int kStages_>
struct WideTile {
  static constexpr int kTokens = kTokens_;
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kStages = kStages_;
  static constexpr int kGroups = 2;
  static constexpr int kRowBlocks = kBlocks * kGroups;
  static constexpr int kBlockBytes = kProductRows * kTileRowBytes;
  static constexpr int kWeightBytes = kRowBlocks * kBlockBytes;
  static constexpr int kInputBytes = kTokens * kTileRowBytes;
  static constexpr int kStageBytes = kWeightBytes + kInputBytes;
  static constexpr int kMultipliers = kGroups * 128;
  static constexpr int kThreads = kMultipliers + 128;
  static constexpr int kValues = kTokens / 2;  // a thread has of a row block
  static constexpr int kProducerRegisters = 40;
  static constexpr int kMultiplierRegisters = 232;
};

// Named barriers of a wide tile; 0 is the block's own.
inline constexpr int kGroupBarrier = 1;  // and the next: of each group
inline constexpr int kTurnBarrier = 3;   // and the next: each group's turn

// FP8's groups begin their products in turn: then one's run while the other
// promotes. Side by side both would end, and both promote, at the same time.
// BeginTurns: once, before the first.
__device__ inline void PassTurn(int group) {
  asm volatile("bar.arrive %0, 256;" ::"r"(kTurnBarrier + 1 - group)
               : "memory");
}
__device__ inline void BeginTurns(int group) {
  if (group == 1) PassTurn(group);
}
__device__ inline void TakeTurn(int group) {
  BarrierSync(kTurnBarrier + group, 256);
}

// As Ring. A stage is empty when all blocks of the cluster, one or a pair, have
// read it.
template <typename TileType>
struct WideRing : Ring<TileType, TileType::kStages> {
  bool paired;

  __device__ explicit WideRing(std::byte* shared)
      : Ring<TileType, TileType::kStages>(shared),
        paired(ClusterBlocks() == 2) {}

  // By one thread; the cluster then meets at ClusterSync.
  __device__ void Init() {
    for (int s = 0; s < TileType::kStages; ++s) {
      BarrierInit(&this->full[s], 1);
      BarrierInit(&this->empty[s],
                  TileType::kMultipliers / 32 * (paired ? 2 : 1));
    }
    BarrierInitFence();
  }

  // By one thread of each multiplying warp.
  __device__ void Release(int stage) const {
    if (paired) {
      BarrierArriveAt(&this->empty[stage], 0);
      BarrierArriveAt(&this->empty[stage], 1);
    } else {
      BarrierArrive(&this->empty[stage]);
    }
  }
};

// The producer warp's work for one tile: `blocks` stages, K from its beginning.
// Row block i of the tile's weights begins at row row_of(i), its tokens at
// `token`. The walk goes on from tile to tile: the next one's first stages are
// asked for while this one is multiplied and stored. `common`: the other block
// of the pair has the same weights now; it has as many stages in any case. `x`
// has boxes of 64 tokens, `x_rest`, for those left over, of eight; boxes past
// the first `count` tokens are left out.
template <typename TileType, typename RowOf>
__device__ void ProduceWide(const WideRing<TileType>& ring,
                            Walk<TileType::kStages>& walk, int rank,
                            bool common, const CUtensorMap* weights,
                            RowOf row_of, const CUtensorMap* x,
                            const CUtensorMap* x_rest, int token, int blocks,
                            int count = TileType::kTokens) {
  constexpr int kWhole = TileType::kTokens / kProductRows;
  constexpr int kRest = TileType::kTokens % kProductRows / 8;
  constexpr int kBoxes = TileType::kRowBlocks + kWhole + kRest;
  static_assert(kBoxes <= 32);
  const int lane = threadIdx.x % 32;
  // Blocks with common weights load each a half of the rows, for both.
  constexpr int kHalf = TileType::kRowBlocks / 2;
  const bool is_input = lane >= TileType::kRowBlocks;
  const int box = lane - TileType::kRowBlocks;  // of the inputs
  const bool whole = box < kWhole;
  const int offset =
      whole ? box * kProductRows : kWhole * kProductRows + (box - kWhole) * 8;
  const bool mine =
      lane < kBoxes &&
      (is_input ? offset < count : !common || lane / kHalf == rank);
  const uint32_t input_bytes =
      is_input && mine ? (whole ? kProductRows : 8) * kTileRowBytes : 0;
  const uint32_t bytes =
      TileType::kWeightBytes + __reduce_add_sync(0xffffffff, input_bytes);
  const int row =
      is_input ? token + offset : row_of(min(lane, TileType::kRowBlocks - 1));
  const CUtensorMap* const map = !is_input ? weights : whole ? x : x_rest;
  const int place = is_input ? TileType::kWeightBytes + offset * kTileRowBytes
                             : lane * TileType::kBlockBytes;
  for (int b = 0; b < blocks; ++b) {
    // Of a stage's first use there is nothing to wait for, and this does not.
    BarrierWait(&ring.empty[walk.stage], walk.phase ^ 1);
    uint64_t* const full = &ring.full[walk.stage];
    if (lane == 0) BarrierExpect(full, bytes);
    __syncwarp();
    std::byte* const to = ring.weights(walk.stage) + place;
    if (mine && common && !is_input) {
      CopyBoxToBlocks(to, map, b * kTileRowBytes, row, full, 3);
    } else if (mine) {
      CopyBox(to, map, b * kTileRowBytes, row, full);
    }
    walk.Advance();
  }
}

// Begins part = one stage's products of 64 rows, in the group's turn.
template <typename Format, int kTokens>
__device__ void BeginInTurn(int group, uint64_t weights, uint64_t inputs,
                            float (&part)[kTokens / 2]) {
  constexpr int kSteps = kTileRowBytes / kProductBytes;
  constexpr int kStep = kProductBytes / 16;  // descriptors count in 16 bytes
  TakeTurn(group);
  ProductFence();
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    Product<Format, kTokens>::Run(part, weights + k * kStep, inputs + k * kStep,
                                  k != 0);
  }
  ProductCommit();
  PassTurn(group);
}

// Where the operands of a stage lie, of a warpgroup's first row block and of
// the tokens: descriptors.
struct StageOperands {
  uint64_t weights;
  uint64_t inputs;
};

// Of the stage that the walk is at, once it is full.
template <typename TileType>
__device__ StageOperands WaitForStage(const WideRing<TileType>& ring,
                                      const Walk<TileType::kStages>& walk,
                                      int group) {
  BarrierWait(&ring.full[walk.stage], walk.phase);
  return {TileDescriptor(SharedAddress(ring.weights(walk.stage)) +
                         group * TileType::kBlocks * TileType::kBlockBytes),
          TileDescriptor(SharedAddress(ring.inputs(walk.stage)))};
}

// sum[m] = the products of the next `blocks` stages, one chain, for the
// warpgroup's row blocks and as many of the tile's tokens as there are sums.
// By all threads of the warpgroup.
template <typename Format, typename TileType, int kValues>
__device__ void MultiplyChain(const WideRing<TileType>& ring,
                              Walk<TileType::kStages>& walk, int group,
                              int blocks,
                              float (&sum)[TileType::kBlocks][kValues]) {
  constexpr int kBlocks = TileType::kBlocks;
  constexpr int kTokens = 2 * kValues;
  static_assert(kTokens <= TileType::kTokens);
  constexpr int kSteps = kTileRowBytes / kProductBytes;
  constexpr int kStep = kProductBytes / 16;  // descriptors count in 16 bytes
  constexpr int kBlockStep = TileType::kBlockBytes / 16;
  const bool leader = threadIdx.x % 32 == 0;
  int previous = -1;
  if constexpr (kPromoted<Format>) {
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) sum[m][i] = 0.0f;
    }
  }
  for (int b = 0; b < blocks; ++b) {
    const auto [weights, inputs] = WaitForStage<TileType>(ring, walk, group);
    if constexpr (kPromoted<Format>) {
      float part[kValues];
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        BeginInTurn<Format, kTokens>(group, weights + m * kBlockStep, inputs,
                                     part);
        ProductWait<0>();
        if (m == kBlocks - 1 && leader) ring.Release(walk.stage);
#pragma unroll
        for (int i = 0; i < kValues; ++i) sum[m][i] += part[i];
      }
    } else {
      ProductFence();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
#pragma unroll
        for (int m = 0; m < kBlocks; ++m) {
          Product<Format, kTokens>::Run(sum[m],
                                        weights + m * kBlockStep + k * kStep,
                                        inputs + k * kStep, b != 0 || k != 0);
        }
      }
      ProductCommit();
      ProductWait<1>();
      if (leader && previous >= 0) ring.Release(previous);
      previous = walk.stage;
    }
    walk.Advance();
  }
  if constexpr (!kPromoted<Format>) {
    ProductWait<0>();
    if (leader && previous >= 0) ring.Release(previous);
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_WIDE_TILE_H_
