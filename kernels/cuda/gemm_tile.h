// The tile that every matrix product here is made of.
//
// One producer warp keeps a ring of stages full through the copy engine; each
// stage is 128 bytes of K of the tile's rows of weights and of its tokens.
// One or two warpgroups multiply. Weights lie on the side of the product that
// has 64 rows, tokens on the side that has 8 to 128: one token then costs one
// eighth of what it would the other way round, and every T runs the same code.
//
// The numerics contract: an output's bits are a function of its row of weights
// and of its token alone. Along K a leaf is one ascending chain of products;
// FP8 promotes to an fp32 sum every 128 of K. How many rows, tokens, stages or
// warpgroups a tile has is free (gemm_test.cc checks it bit for bit).
#ifndef INVAR_KERNELS_CUDA_GEMM_TILE_H_
#define INVAR_KERNELS_CUDA_GEMM_TILE_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_wgmma.h"
#include "kernels/types.h"

namespace invar::cuda {

template <typename Format>
inline constexpr bool kPromoted = false;
template <>
inline constexpr bool kPromoted<E4m3Format> = true;

// e4m3 whose products are multiplied with scales where they are promoted.
struct ScaledE4m3Format;
template <>
inline constexpr bool kPromoted<ScaledE4m3Format> = true;
template <int kTokens>
struct Product<ScaledE4m3Format, kTokens> : Product<E4m3Format, kTokens> {};
static_assert(kScaleBlock == 128, "a stage of FP8 has one scale");
// A stage holds 128 bytes of K, so FP8's stages end where it promotes.
static_assert(kTileRowBytes == 128, "FP8 promotes every 128 of K");

// kBlocks: 64-row blocks of weights a warpgroup multiplies with the same
// tokens. kGroups: multiplying warpgroups of the thread block. One warp
// produces; it is a whole warpgroup where registers move between these.
template <int kTokens, int kBlocks, int kGroups, int kProducers = 32>
struct Tile {
  static constexpr int kRowBlocks = kBlocks * kGroups;
  static constexpr int kRows = kRowBlocks * kProductRows;
  static constexpr int kBlockBytes = kProductRows * kTileRowBytes;
  static constexpr int kWeightBytes = kRowBlocks * kBlockBytes;
  static constexpr int kInputBytes = kTokens * kTileRowBytes;
  static constexpr int kStageBytes = kWeightBytes + kInputBytes;
  static constexpr int kMultipliers = kGroups * 128;
  static constexpr int kThreads = kMultipliers + kProducers;
};

// The ring of stages, in dynamic shared memory: a full and an empty barrier a
// stage, then the stages at a multiple of 1,024 bytes.
template <typename TileType, int kStages>
struct Ring {
  static constexpr int kBarrierBytes = 1024;
  static_assert(2 * kStages * sizeof(uint64_t) <= kBarrierBytes);
  // The start of dynamic memory is aligned to less than a stage needs.
  static constexpr int kSharedBytes =
      1024 + kBarrierBytes + kStages * TileType::kStageBytes;

  uint64_t* full;
  uint64_t* empty;
  std::byte* stages;

  __device__ explicit Ring(std::byte* shared) {
    const uint32_t address = SharedAddress(shared);
    std::byte* aligned = shared + ((1024 - address % 1024) % 1024);
    full = reinterpret_cast<uint64_t*>(aligned);
    empty = full + kStages;
    stages = aligned + kBarrierBytes;
  }

  // By one thread, before the block's first barrier.
  __device__ void Init() {
    for (int s = 0; s < kStages; ++s) {
      BarrierInit(&full[s], 1);
      BarrierInit(&empty[s], TileType::kMultipliers / 32);
    }
    BarrierInitFence();
  }

  __device__ std::byte* weights(int s) const {
    return stages + s * TileType::kStageBytes;
  }
  __device__ std::byte* inputs(int s) const {
    return weights(s) + TileType::kWeightBytes;
  }
  // By one thread of each multiplying warp.
  __device__ void Release(int s) const { BarrierArrive(&empty[s]); }
};

// Where a walk over the ring stands: the b-th block of K lies in stage
// b mod kStages and completes that stage's phase b / kStages.
template <int kStages>
struct Walk {
  int stage = 0;
  uint32_t phase = 0;

  __device__ void Advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// The producer warp's whole work: `blocks` stages of 128 bytes along K.
// load_weights(lane, stage, block) and load_inputs(lane, stage, block) issue
// the copies onto ring.full[stage]; stage_bytes is what they sum to.
// Weights are constant, so the first stages' load before the prior kernel ends;
// with `early` the inputs' do so too.
template <typename RingType, int kStages, typename LoadWeights,
          typename LoadInputs>
__device__ void Produce(const RingType& ring, int lane, int blocks,
                        uint32_t stage_bytes, bool early,
                        LoadWeights load_weights, LoadInputs load_inputs) {
  const int ahead = blocks < kStages ? blocks : kStages;
  for (int b = 0; b < ahead; ++b) {
    if (lane == 0) BarrierExpect(&ring.full[b], stage_bytes);
    __syncwarp();
    load_weights(lane, b, b);
  }
  if (!early) WaitForPriorKernel();
  Walk<kStages> walk;
  for (int b = 0; b < blocks; ++b) {
    if (b >= kStages) {
      BarrierWait(&ring.empty[walk.stage], walk.phase ^ 1);
      if (lane == 0) BarrierExpect(&ring.full[walk.stage], stage_bytes);
      __syncwarp();
      load_weights(lane, walk.stage, b);
    }
    load_inputs(lane, walk.stage, b);
    walk.Advance();
  }
}

// What a thread multiplies the sums of one stage with: nothing.
struct NoScales {
  static constexpr bool kActive = false;
};

// The weight's scale of each row block times the scale of each of the thread's
// tokens. `inputs` (rows, blocks) is read at input_row[token of the tile].
template <int kTokens, int kBlocks>
struct BlockScales {
  static constexpr bool kActive = true;
  static constexpr int kMine = kTokens / 4;  // tokens of a thread

  const float* weights[kBlocks];
  const float* inputs;
  int k_blocks;
  const int* input_row;
  float weight[kBlocks];
  float input[kMine];

  // The scales of the block at k_block of K.
  __device__ void Load(int k_block) {
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) weight[m] = weights[m][k_block];
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int token = FragmentToken(threadIdx.x, i / 2 * 4 + i % 2);
      input[i] = inputs[input_row[token] * k_blocks + k_block];
    }
  }
  // Of value i of row block m.
  __device__ float operator()(int m, int i) const {
    return weight[m] * input[i / 4 * 2 + i % 2];
  }
};

// sum += part, times its scales.
template <int kTokens, int kBlocks, typename Scales>
__device__ inline void Promote(const Scales& scales, int m,
                               const float (&part)[kTokens / 2],
                               float (&sum)[kBlocks][kTokens / 2]) {
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    if constexpr (Scales::kActive) {
      sum[m][i] = fmaf(part[i], scales(m, i), sum[m][i]);
    } else {
      sum[m][i] += part[i];
    }
  }
}

// sum[m] = the products of the next `blocks` stages, for the row blocks
// first_block + m of the tile; with kAlongTokens for one row block and tokens
// that begin m * kTokens later. first_k is the first stage's place in K. By all
// threads of a warpgroup.
template <typename Format, int kTokens, int kBlocks, typename RingType,
          int kStages, bool kAlongTokens = false, typename Scales>
__device__ void Multiply(const RingType& ring, Walk<kStages>& walk,
                         int first_block, int blocks, int first_k,
                         Scales& scales, float (&sum)[kBlocks][kTokens / 2]) {
  constexpr int kSteps = kTileRowBytes / kProductBytes;
  constexpr int kBlockBytes = kProductRows * kTileRowBytes;
  const bool leader = threadIdx.x % 32 == 0;
  int previous = -1;
  if constexpr (kPromoted<Format>) {
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) sum[m][i] = 0.0f;
    }
  }
#pragma unroll 1
  for (int b = 0; b < blocks; ++b) {
    if constexpr (Scales::kActive) scales.Load(first_k + b);
    const UniformDescriptor weights(SharedAddress(ring.weights(walk.stage)) +
                                    first_block * kBlockBytes);
    const UniformDescriptor inputs(SharedAddress(ring.inputs(walk.stage)));
    BarrierWait(&ring.full[walk.stage], walk.phase);
    // Descriptors count in 16 bytes.
    constexpr int kStep = kProductBytes / 16;
    constexpr int kBlockStep = kAlongTokens ? 0 : kBlockBytes / 16;
    constexpr int kInputStep = kAlongTokens ? kTokens * kTileRowBytes / 16 : 0;
    if constexpr (kPromoted<Format>) {
      float part[kBlocks][kTokens / 2];
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        ProductFence();
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          Product<Format, kTokens>::Run(
              part[m], weights[m * kBlockStep + k * kStep],
              inputs[m * kInputStep + k * kStep], k != 0);
        }
        ProductCommit();
        if constexpr (kTokens > 64) {  // one part at a time fits registers
          ProductWait<0>();
          Promote<kTokens, kBlocks>(scales, m, part[m], sum);
        }
      }
      if constexpr (kTokens <= 64) ProductWait<0>();
      if (leader) ring.Release(walk.stage);
      if constexpr (kTokens <= 64) {
#pragma unroll
        for (int m = 0; m < kBlocks; ++m) {
          Promote<kTokens, kBlocks>(scales, m, part[m], sum);
        }
      }
    } else {
      ProductFence();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
#pragma unroll
        for (int m = 0; m < kBlocks; ++m) {
          Product<Format, kTokens>::Run(
              sum[m], weights[m * kBlockStep + k * kStep],
              inputs[m * kInputStep + k * kStep], b != 0 || k != 0);
        }
      }
      ProductCommit();
      // This stage's products may run on while the next one is awaited.
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

// A stage of a walk, once it is full.
struct FullStage {
  int stage;
  UniformDescriptor weights;
  UniformDescriptor inputs;
};
template <typename RingType, int kStages>
__device__ inline FullStage NextStage(const RingType& ring, Walk<kStages>& walk,
                                      int row_block, int first_token = 0) {
  const FullStage next = {
      walk.stage,
      UniformDescriptor(SharedAddress(ring.weights(walk.stage)) +
                        row_block * kProductRows * kTileRowBytes),
      UniformDescriptor(SharedAddress(ring.inputs(walk.stage)) +
                        first_token * kTileRowBytes)};
  BarrierWait(&ring.full[walk.stage], walk.phase);
  walk.Advance();
  return next;
}

// The k-th product of a stage: d += A B^T, or = if `accumulate` is 0.
template <typename Format, int kTokens>
__device__ inline void RunStep(const FullStage& stage, int k,
                               float (&d)[kTokens / 2], int accumulate) {
  constexpr int kStep = kProductBytes / 16;  // descriptors count in 16 bytes
  Product<Format, kTokens>::Run(d, stage.weights[k * kStep],
                                stage.inputs[k * kStep], accumulate);
}

// Multiply of one row block and of the tile's tokens from first_token, a
// multiple of 8; e4m3 without scales: two stages, product by
// product in turn. A product waits for the one before it in its chain three
// times as long as one of 64 tokens takes, and each stage is a chain of its own
// till it is promoted.
template <int kTokens, typename RingType, int kStages>
__device__ void MultiplyPairs(const RingType& ring, Walk<kStages>& walk,
                              int row_block, int blocks,
                              float (&sum)[kTokens / 2], int first_token = 0) {
  using Format = E4m3Format;
  constexpr int kSteps = kTileRowBytes / kProductBytes;
  const bool leader = threadIdx.x % 32 == 0;
  const auto promote = [&](const float(&part)[kTokens / 2]) {
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sum[i] += part[i];
  };
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) sum[i] = 0.0f;
#pragma unroll 1
  for (int b = 0; b + 1 < blocks; b += 2) {
    float part[2][kTokens / 2];
    const FullStage first = NextStage(ring, walk, row_block, first_token);
    const FullStage second = NextStage(ring, walk, row_block, first_token);
    ProductFence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      RunStep<Format, kTokens>(first, k, part[0], k != 0);
      if (k == kSteps - 1) ProductCommit();
      RunStep<Format, kTokens>(second, k, part[1], k != 0);
    }
    ProductCommit();
    ProductWait<1>();
    if (leader) ring.Release(first.stage);
    promote(part[0]);
    ProductWait<0>();
    if (leader) ring.Release(second.stage);
    promote(part[1]);
  }
  if (blocks % 2 != 0) {
    float part[kTokens / 2];
    const FullStage last = NextStage(ring, walk, row_block, first_token);
    ProductFence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      RunStep<Format, kTokens>(last, k, part, k != 0);
    }
    ProductCommit();
    ProductWait<0>();
    if (leader) ring.Release(last.stage);
    promote(part);
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_GEMM_TILE_H_
