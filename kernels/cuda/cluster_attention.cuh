// One split of a token's sequence by a cluster of one to eight blocks, which go
// through its tiles in rounds. In each a group of four warps scores a tile of
// its own; the tiles' maxima and weights go to all blocks of the cluster; each
// of these adds the values of all the round's tiles, in order, for its part of
// the latents. So every sum is that of mla_attention.cu, addition by addition,
// whatever the cluster; but with eight blocks, sixteen tiles take hardly longer
// than two.
#ifndef INVAR_KERNELS_CUDA_CLUSTER_ATTENTION_CUH_
#define INVAR_KERNELS_CUDA_CLUSTER_ATTENTION_CUH_

#include "kernels/cuda/attention_merge.cuh"
#include "kernels/cuda/attention_tile.cuh"

namespace invar::cuda {

inline constexpr int kClusterThreads = 2 * kThreads;
// Of a split, at most: eight blocks with FP8 caches have one round.
inline constexpr int kClusterTiles = 16;
static_assert(kAttentionSplits.tiles <= kClusterTiles);

// How a cluster of kBlocks shares the work.
template <typename Code_, int kBlocks_>
struct Team {
  using Code = Code_;
  static constexpr int kBlocks = kBlocks_;
  // Tiles that a block scores in a round: what fits shared memory.
  static constexpr int kOwnTiles = 2 / Code::kBytes;
  static constexpr int kRoundTiles = kBlocks * kOwnTiles;
  static constexpr int kRowBytes = kRow * Code::kBytes;
  static constexpr int kTileBytes = kTile * kRowBytes;

  // A block's values are its slice of each tile. A block alone has its own
  // tiles to add from, and the next round's beside them.
  static constexpr bool kSliced = kBlocks > 1;
  static constexpr int kRowBuffers = kSliced ? 1 : 2;
  static constexpr int kSliceRowBytes = kLatent * Code::kBytes / kBlocks;
  static constexpr int kSliceBytes = kTile * kSliceRowBytes;
  static constexpr int kSliceChunks = kSliceRowBytes / 16;

  static constexpr int kValueWarps = kBlocks == 8 ? 4 : 8;
  static constexpr int kLatents = kLatent / kBlocks / kValueWarps;  // of a warp
  static constexpr int kSums = kLatents / 8;                        // sum tiles
  static constexpr int kChunks = kLatents * Code::kBytes / 16;
  // What is exchanged in a round may come while the round before is added.
  static constexpr int kExchanges = kRoundTiles < kClusterTiles ? 2 : 1;
};

// What blocks tell each other of a round.
template <typename TeamType>
struct Exchange {
  uint4 weights[TeamType::kRoundTiles][kWarps][32];
  // So far apart that eight heads lie in different banks.
  float tile_max[kHeads][TeamType::kRoundTiles + 4];
};

template <typename TeamType>
struct ClusterShared {
  alignas(128) std::byte
      rows[TeamType::kRowBuffers][TeamType::kOwnTiles][TeamType::kTileBytes];
  alignas(128) std::byte
      slices[TeamType::kSliced ? TeamType::kRoundTiles * TeamType::kSliceBytes
                               : 128];
  uint4 query[kSteps][32];  // operands as the mma wants them, a lane each
  Exchange<TeamType> exchanges[TeamType::kExchanges];
  float warp_max[TeamType::kOwnTiles][kWarps][kHeads];
  float score_factor[kHeads];
  uint64_t maxima_here[TeamType::kExchanges];
  uint64_t weights_here[TeamType::kExchanges];
};

// Where chunk `chunk` of a row of a block's slice lies: eight rows' chunks in
// different banks.
template <typename TeamType>
__device__ inline uint32_t SliceAddress(const std::byte* slice, int row,
                                        int chunk) {
  constexpr int kChunks = TeamType::kSliceChunks;
  const int moved = chunk ^ (kChunks == 4 ? row >> 1 & 3 : row & 7);
  return SharedAddress(slice + row * TeamType::kSliceRowBytes + 16 * moved);
}

// A round of a split: `tiles` of them, from tile `first` of the sequence on.
struct Round {
  int first;
  int tiles;
};

// A block's work on its cluster's split.
template <typename TeamType>
struct SplitAttention {
  using Code = typename TeamType::Code;
  using Operand = typename Code::Operand;
  static constexpr int kSums = TeamType::kSums;

  ClusterShared<TeamType>& shared;
  const std::byte* cache;
  const int32_t* blocks;  // of the sequence
  int position;           // of the token
  int end;                // tile of the sequence, behind the split's last
  int rank;
  int own;        // of a round's tiles, this group's; none: kRoundTiles
  int count = 0;  // rounds so far
  // A warp's part of the split: of heads g and g + 8 the reference, the row
  // sums in sum[0] and sum[2], and the weighted sums.
  float reference[2] = {-INFINITY, -INFINITY};
  float sum[4] = {};
  float out[kSums][4] = {};

  __device__ Round RoundAt(int first) const {
    return {first, min(TeamType::kRoundTiles, end - first)};
  }

  // ---- Copies; each a batch, also where there is nothing to copy

  __device__ std::byte* OwnRows(int of_round) const {
    return shared
        .rows[of_round % TeamType::kRowBuffers][Group() % TeamType::kOwnTiles];
  }
  // `to_round` counts as `count`.
  __device__ void LoadOwn(const Round& round, int to_round) {
    if (own < round.tiles) {
      const int tile = round.first + own;
      LoadTile<Code>(cache + int64_t{blocks[tile]} * TeamType::kTileBytes,
                     tile * kTile, position, OwnRows(to_round));
    }
    CommitCopies();
  }
  // Of tiles [begin, end) of the round, by all threads.
  __device__ void LoadSlices(const Round& round, int begin, int end) {
    constexpr int kChunks = TeamType::kSliceChunks;
    constexpr int kRows = kClusterThreads / kChunks;  // at once
    const int lane = threadIdx.x % 32;
    const int chunk = threadIdx.x % kChunks;
    const int id = lane < round.tiles ? blocks[round.first + lane] : 0;
#pragma unroll 4
    for (int tile = begin; tile < end; ++tile) {
      const int64_t block = __shfl_sync(0xffffffff, id, tile);
      const std::byte* const rows = cache + block * TeamType::kTileBytes +
                                    rank * TeamType::kSliceRowBytes +
                                    16 * chunk;
#pragma unroll
      for (int r = 0; r < kTile; r += kRows) {
        const int row = r + threadIdx.x / kChunks;
        CopyAsync(SliceAddress<TeamType>(
                      shared.slices + tile * TeamType::kSliceBytes, row, chunk),
                  rows + row * TeamType::kRowBytes,
                  (round.first + tile) * kTile + row <= position);
      }
    }
    CommitCopies();
  }

  // ---- Scores

  __device__ Exchange<TeamType>& Exchanged() const {
    return shared.exchanges[count % TeamType::kExchanges];
  }
  __device__ uint64_t* MaximaHere() const {
    return &shared.maxima_here[count % TeamType::kExchanges];
  }
  __device__ uint64_t* WeightsHere() const {
    return &shared.weights_here[count % TeamType::kExchanges];
  }
  __device__ uint32_t Parity() const {
    return count / TeamType::kExchanges % 2;
  }

  // What will come of a round of so many tiles. By one thread.
  __device__ void ExpectRound(int tiles) {
    BarrierExpect(MaximaHere(),
                  tiles * kHeads * static_cast<int>(sizeof(float)));
    BarrierExpect(WeightsHere(),
                  tiles * static_cast<int>(sizeof(Exchanged().weights[0])));
  }

  // This group's tile, and its maxima to all blocks.
  __device__ void Score(const Round& round, float (&scores)[2][4]) {
    const int lane = threadIdx.x % 32;
    auto& warp_max = shared.warp_max[Group() % TeamType::kOwnTiles];
    float largest[2];
    Scores<Code>(shared.query, OwnRows(count), scores);
    MaskScores(shared.score_factor,
               (round.first + own) * kTile + 16 * GroupWarp(), position, scores,
               largest);
    if (lane % 4 == 0) {
      warp_max[GroupWarp()][lane / 4] = largest[0];
      warp_max[GroupWarp()][lane / 4 + 8] = largest[1];
    }
    GroupSync();
    if (GroupThread() >= kHeads * TeamType::kBlocks) return;
    const int head = GroupThread() % kHeads;
    const int to = GroupThread() / kHeads;
    float tile_max = warp_max[0][head];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) {
      tile_max = fmaxf(tile_max, warp_max[w][head]);
    }
    float* const at = &Exchanged().tile_max[head][own];
    if constexpr (TeamType::kSliced) {
      StoreAsync(AddressInRank(at, to), tile_max,
                 AddressInRank(MaximaHere(), to));
    } else {
      *at = tile_max;
    }
  }

  // What has been scored becomes weights, for all blocks.
  __device__ void SendWeights(const float (&scores)[2][4]) {
    const int lane = threadIdx.x % 32;
    float of_own[2];  // the reference of this group's tile
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* maxima = Exchanged().tile_max[lane / 4 + 8 * i];
      of_own[i] = reference[i];
#pragma unroll
      for (int tile = 0; tile < TeamType::kRoundTiles; ++tile) {
        const float tile_max = maxima[tile];
        if (tile <= own) of_own[i] = NextReference(of_own[i], tile_max);
      }
    }
    const uint4 weights = Weights<Operand>(scores, of_own);
    uint4* const at = &Exchanged().weights[own][GroupWarp()][lane];
    if constexpr (TeamType::kSliced) {
      const float4 bits = {
          __uint_as_float(weights.x), __uint_as_float(weights.y),
          __uint_as_float(weights.z), __uint_as_float(weights.w)};
#pragma unroll
      for (int to = 0; to < TeamType::kBlocks; ++to) {
        StoreAsync4(AddressInRank(at, to), bits,
                    AddressInRank(WeightsHere(), to));
      }
    } else {
      *at = weights;
    }
  }

  // ---- Values

  // A tile's operands: asked for while the tile before is added.
  struct Operands {
    uint4 weights[kTile / 16];
    uint32_t codes[kTile / 16][2 * TeamType::kChunks];
    float rescale[2];  // what the tiles before are multiplied with
  };

  __device__ uint32_t ValueAddress(int tile, int row, int chunk) const {
    if constexpr (TeamType::kSliced) {
      return SliceAddress<TeamType>(
          shared.slices + tile * TeamType::kSliceBytes, row, chunk);
    } else {
      return ChunkAddress<Code>(
          shared.rows[count % TeamType::kRowBuffers][tile], row, chunk);
    }
  }
  __device__ void LoadOperands(int tile, Operands& o) {
    constexpr int kChunks = TeamType::kChunks;
    const int lane = threadIdx.x % 32;
    const int first = threadIdx.x / 32 * kChunks;
#pragma unroll
    for (int step = 0; step < kTile / 16; ++step) {
      o.weights[step] = Exchanged().weights[tile][step][lane];
    }
    if constexpr (kChunks == 1) {
      // Four matrices are one chunk of two steps.
#pragma unroll
      for (int step = 0; step < kTile / 16; step += 2) {
        uint32_t r[4];
        LoadTransposed(r, ValueAddress(tile, 16 * step + lane, first));
#pragma unroll
        for (int i = 0; i < 4; ++i) o.codes[step + i / 2][i % 2] = r[i];
      }
    } else {
      // Or two chunks of one step.
#pragma unroll
      for (int step = 0; step < kTile / 16; ++step) {
#pragma unroll
        for (int c = 0; c < kChunks; c += 2) {
          uint32_t r[4];
          LoadTransposed(r, ValueAddress(tile, 16 * step + lane % 16,
                                         first + c + lane / 16));
#pragma unroll
          for (int i = 0; i < 4; ++i) o.codes[step][2 * c + i] = r[i];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float next = NextReference(
          reference[i], Exchanged().tile_max[lane / 4 + 8 * i][tile]);
      o.rescale[i] = RescaleFactor(reference[i], next);
      reference[i] = next;
    }
  }
  __device__ void AddOperands(const Operands& o) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[i] *= o.rescale[i / 2];
#pragma unroll
      for (int n = 0; n < kSums; ++n) out[n][i] *= o.rescale[i / 2];
    }
#pragma unroll
    for (int step = 0; step < kTile / 16; ++step) {
      Mma<Operand>(sum, o.weights[step], kOnes<Operand>, kOnes<Operand>);
#pragma unroll
      for (int c = 0; c < TeamType::kChunks; ++c) {
        AddChunk<Code>(o.weights[step], o.codes[step][2 * c],
                       o.codes[step][2 * c + 1], out + c * 2 / Code::kBytes);
      }
    }
  }
  __device__ void AddValues(int tiles) {
    Operands even;
    if constexpr (kSums > 4) {  // enough chains to hide what is waited for
      for (int tile = 0; tile < tiles; ++tile) {
        LoadOperands(tile, even);
        AddOperands(even);
      }
      return;
    }
    Operands odd;
    LoadOperands(0, even);
#pragma unroll 1
    for (int tile = 0; tile < tiles; tile += 2) {
      if (tile + 1 < tiles) LoadOperands(tile + 1, odd);
      AddOperands(even);
      if (tile + 1 == tiles) break;
      if (tile + 2 < tiles) LoadOperands(tile + 2, even);
      AddOperands(odd);
    }
  }
};

// grid (kBlocks T, groups of 16 heads, splits of at most kClusterTiles). Of
// several splits the results
// go to partials (attention_merge.cuh), of one they are all, and go to out. A
// token's cluster leaves as a whole.
template <typename Code, int kBlocks>
__global__ void __launch_bounds__(kClusterThreads, 1)
    ClusterKernel(TokenPlaces places, const float* query, int heads,
                  float scale_log2, const std::byte* cache, bool early,
                  float* partials, float* out, AttentionSplits cut) {
  using TeamType = Team<Code, kBlocks>;
  constexpr bool kSliced = TeamType::kSliced;
  constexpr int kSums = TeamType::kSums;
  extern __shared__ std::byte memory[];
  auto& shared = *reinterpret_cast<ClusterShared<TeamType>*>(memory);
  AllowNextKernel();
  if (!early) WaitForPriorKernel();
  const int64_t t = blockIdx.x / kBlocks;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int rank = kSliced ? static_cast<int>(ClusterRank()) : 0;
  const int position = places.positions[t];
  const int first_tile = cut.Begin(blockIdx.z);
  if (first_tile * kTile > position) return;
  SplitAttention<TeamType> split = {
      .shared = shared,
      .cache = cache,
      .blocks = places.block_ids + places.tables[t],
      .position = position,
      .end = min(cut.Begin(blockIdx.z + 1), position / kTile + 1),
      .rank = rank,
      // Neighbouring tiles in different blocks, for short splits' sake.
      .own = Group() < TeamType::kOwnTiles ? rank + kBlocks * Group()
                                           : TeamType::kRoundTiles};
  Round round = split.RoundAt(first_tile);
  if constexpr (kSliced) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < TeamType::kExchanges; ++i) {
        BarrierInit(&shared.maxima_here[i], 1);
        BarrierInit(&shared.weights_here[i], 1);
      }
      BarrierInitFence();
    }
    // Nothing is sent to a block before its barriers are there.
    ClusterArriveRelaxed();
  }

  // Tiles without the token's own row, which the kernel ahead writes.
  const int old_tiles =
      early ? max(0, min(round.tiles, position / kTile - first_tile)) : 0;
  const bool own_is_old = split.own < old_tiles;
  if (own_is_old) split.LoadOwn(round, 0);
  if constexpr (kSliced) split.LoadSlices(round, 0, old_tiles);
  WaitForPriorKernel();
  if (!own_is_old) split.LoadOwn(round, 0);
  if constexpr (kSliced) split.LoadSlices(round, old_tiles, round.tiles);
  const int first_head = blockIdx.y * kHeads;
  {
    constexpr int kRows = kHeads / (kClusterThreads / 32);  // of a warp
    WarpRow<kRow> x[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int head = first_head + kRows * warp + i;
      LoadRow<kRow>(head < heads ? query + (t * heads + head) * kRow : nullptr,
                    x[i]);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float scale =
          PackRow<Code, kRow>(x[i], nullptr, kRows * warp + i, shared.query);
      if (lane == 0) shared.score_factor[kRows * warp + i] = scale_log2 / scale;
    }
  }
  if constexpr (kSliced) ClusterWait();

  for (bool more = true; more; ++split.count) {
    if constexpr (kSliced) {
      if (threadIdx.x == 0) split.ExpectRound(round.tiles);
      // This round's own tiles are here, its slices may be on the way.
      if (split.count == 0 && own_is_old) {
        WaitForCopies<2>();
      } else {
        WaitForCopies<1>();
      }
    } else {
      WaitForCopies();
    }
    __syncthreads();
    const Round next = split.RoundAt(round.first + TeamType::kRoundTiles);
    more = next.tiles > 0;
    if constexpr (!kSliced) {
      if (more) split.LoadOwn(next, split.count + 1);
    }
    float scores[2][4];
    if (split.own < round.tiles) {
      split.Score(round, scores);
    } else {
      // As often as the other group: racecheck counts a warp's barriers, and
      // holds those with fewer for not yet here.
      GroupSync();
    }
    if constexpr (kSliced) {
      if (more) split.LoadOwn(next, split.count + 1);
      BarrierWaitCluster(split.MaximaHere(), split.Parity());
    } else {
      __syncthreads();
    }
    if (split.own < round.tiles) split.SendWeights(scores);
    if constexpr (kSliced) {
      if (more) {
        WaitForCopies<1>();
      } else {
        WaitForCopies();
      }
    }
    __syncthreads();
    if constexpr (kSliced) {
      BarrierWaitCluster(split.WeightsHere(), split.Parity());
    }
    if (warp < TeamType::kValueWarps) split.AddValues(round.tiles);
    if constexpr (kSliced) {
      if (more) {
        __syncthreads();  // nobody reads the slices any more
        split.LoadSlices(next, 0, next.tiles);
      }
    }
    round = next;
  }
  if (warp >= TeamType::kValueWarps) return;

  const int sum_tile = (rank * TeamType::kValueWarps + warp) * kSums;
  if (gridDim.z == 1) {
    const float inverse[2] = {1.0f / split.sum[0], 1.0f / split.sum[2]};
#pragma unroll
    for (int n = 0; n < kSums; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) split.out[n][i] *= inverse[i / 2];
    }
    StoreSums<Code>(out + (t * heads + first_head) * kLatent, 0, sum_tile,
                    split.out, min(kHeads, heads - first_head));
    return;
  }
  float* const partial =
      partials + ((t * gridDim.y + blockIdx.y) * gridDim.z + blockIdx.z) *
                     int64_t{kPartialFloats};
  StoreSums<Code>(partial, 0, sum_tile, split.out);
  if (rank == 0 && warp == 0 && lane % 4 == 0) {
    float* row = partial + kHeads * kLatent;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row[lane / 4 + 8 * i] = split.reference[i];
      row[kHeads + lane / 4 + 8 * i] = split.sum[2 * i];
    }
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_CLUSTER_ATTENTION_CUH_
