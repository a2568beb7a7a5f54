// Absorbed MLA attention over the paged cache: one arithmetic for a token of a
// prompt and for a decoded one. attention.md says why it is built so.
//
// A block has one token's 16 heads, the rows of its matrix products. A group of
// four warps shares each tile of cached rows: in scores = Q K^T a warp has 16
// cached rows, in out = P V it has 128 latents. Codes go from shared memory
// straight to operands in registers, each twice, once a product. Where a block
// has two groups they take turns at the splits, and the first merges.
#include "kernels/cuda/attention_merge.cuh"
#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/cluster_attention.cuh"
#include "kernels/cuda/free_split.h"
#include "kernels/cuda/gemm_launch.h"

namespace invar::cuda {
namespace {

// Below this many (token, 16 heads) clusters have splits, from here on a block
// has a whole sequence: measured, and free, since the bits are the same.
constexpr int64_t kWholeUnits = 100;
// And below this many, whole sequences have two groups: later, two blocks share
// a multiprocessor. As free.
constexpr int64_t kPairedUnits = 200;

// Blocks of a cluster, of so many splits in all: as many as run at once. (A GPU
// has a few multiprocessors less for clusters than for blocks.) As free.
constexpr int ClusterBlocksFor(int64_t splits) {
  return splits <= 15 ? 8 : splits <= 30 ? 4 : splits <= 65 ? 2 : 1;
}

// Named barriers, past the groups'.
constexpr int kFilled = 3;   // a split of the second group can be read
constexpr int kEmptied = 4;  // it has been

// What a group has for itself.
template <typename Code>
struct GroupShared {
  alignas(128) std::byte rows[2][kTile * kRow * Code::kBytes];
  uint4 weights[kWarps][32];
  float warp_max[kWarps][kHeads];
};

template <typename Code, int kGroups>
struct Shared {
  GroupShared<Code> groups[kGroups];
  uint4 query[kSteps][32];  // operands as the mma wants them, a lane each
  float score_factor[kHeads];
  // The second group's last split: as in global memory, but reference and sum
  // are every thread's own.
  float split[kGroups == 1 ? 1 : (kSums + 4) * kThreads];
};

// The block's query as operands, and what its scores are multiplied with.
template <typename Code, int kGroups>
__device__ void LoadQuery(const float* query, int heads, float scale_log2,
                          Shared<Code, kGroups>& shared) {
  for (int h = threadIdx.x / 32; h < kHeads; h += kGroups * kWarps) {
    const float scale = PackRow<Code, kRow>(
        h < heads ? query + h * kRow : nullptr, nullptr, h, shared.query);
    if (threadIdx.x % 32 == 0) shared.score_factor[h] = scale_log2 / scale;
  }
}

// A thread's part of an online softmax: of heads g and g + 8 the
// reference (attention_weights.cuh), the row sums in sum[0] and sum[2], and the
// weighted sums of 128 / 4 latents each.
struct Softmax {
  float reference[2];
  float sum[4];
  float out[kSumTiles][4];

  __device__ void Clear() {
    reference[0] = reference[1] = -INFINITY;
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = 0.0f;
#pragma unroll
    for (int n = 0; n < kSumTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[n][i] = 0.0f;
    }
  }
};

// out += P V for the warp's latents. Sum tile n and the thread's place in it
// name a latent as StoreRow says.
template <typename Code>
__device__ void AddValues(const GroupShared<Code>& group, const std::byte* rows,
                          Softmax& softmax) {
  using Operand = typename Code::Operand;
  constexpr int kChunks = 128 * Code::kBytes / 16;  // of the warp's latents
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 0; step < kTile / 16; ++step) {
    const uint4 weights = group.weights[step][lane];
    Mma<Operand>(softmax.sum, weights, kOnes<Operand>, kOnes<Operand>);
#pragma unroll
    for (int c = 0; c < kChunks; c += 2) {
      uint32_t r[4];  // of two chunks
      LoadTransposed(r,
                     ChunkAddress<Code>(rows, 16 * step + lane % 16,
                                        GroupWarp() * kChunks + c + lane / 16));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        AddChunk<Code>(weights, r[2 * i], r[2 * i + 1],
                       softmax.out + (c + i) * 2 / Code::kBytes);
      }
    }
  }
}

// One tile: scores, their exponentials as operands, and the sums.
template <typename Code, int kGroups>
__device__ void AddTile(Shared<Code, kGroups>& shared, const std::byte* rows,
                        int first, int position, Softmax& softmax) {
  using Operand = typename Code::Operand;
  GroupShared<Code>& group = shared.groups[Group()];
  const int warp = GroupWarp();
  const int lane = threadIdx.x % 32;
  float scores[2][4];
  Scores<Code>(shared.query, rows, scores);
  float max[2];
  MaskScores(shared.score_factor, first + 16 * warp, position, scores, max);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (lane % 4 == 0) group.warp_max[warp][lane / 4 + 8 * i] = max[i];
  }
  GroupSync();
  float rescale[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float tile_max = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      tile_max = fmaxf(tile_max, group.warp_max[w][lane / 4 + 8 * i]);
    }
    const float next = NextReference(softmax.reference[i], tile_max);
    rescale[i] = RescaleFactor(softmax.reference[i], next);
    softmax.reference[i] = next;
  }
  group.weights[warp][lane] = Weights<Operand>(scores, softmax.reference);
  if (!__all_sync(0xffffffff, rescale[0] == 1.0f && rescale[1] == 1.0f)) {
#pragma unroll
    for (int i = 0; i < 4; ++i) softmax.sum[i] *= rescale[i / 2];
#pragma unroll
    for (int n = 0; n < kSumTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) softmax.out[n][i] *= rescale[i / 2];
    }
  }
  GroupSync();
  AddValues<Code>(group, rows, softmax);
}

// A thread's part of the splits merged so far.
struct Merged {
  MergedSplits heads[2];  // g and g + 8
  float total[kSumTiles][4];

  template <typename SplitSum>
  __device__ void Add(bool is_first, const float (&reference)[2],
                      const float (&split_sum)[2], SplitSum split_out) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      heads[i].Add(is_first, reference[i], split_sum[i]);
    }
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
      float& to = total[k / 4][k % 4];
      to = heads[k % 4 / 2].Merge(is_first, split_out(k), to);
    }
  }

  // out (heads, L) = total times the sum's inverse.
  template <typename Code>
  __device__ void Store(int count, float* out) {
    const float inverse[2] = {heads[0].Inverse(), heads[1].Inverse()};
#pragma unroll
    for (int n = 0; n < kSumTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) total[n][i] *= inverse[i / 2];
    }
    StoreSums<Code>(out, GroupWarp(), 0, total, count);
  }
};

// A split as the second group leaves it for the first.
template <int kGroups, typename Code>
__device__ void LeaveSplit(const Softmax& split,
                           Shared<Code, kGroups>& shared) {
  float* const at = shared.split + GroupThread();
#pragma unroll
  for (int k = 0; k < kSums; ++k) at[k * kThreads] = split.out[k / 4][k % 4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    at[(kSums + i) * kThreads] = split.reference[i];
    at[(kSums + 2 + i) * kThreads] = split.sum[2 * i];
  }
}

// A whole sequence a block. grid (T, groups of 16 heads)
template <typename Code, int kGroups>
__global__ void __launch_bounds__(kGroups* kThreads,
                                  Code::kBytes == 1 && kGroups == 1 ? 2 : 1)
    AttentionKernel(TokenPlaces places, const float* query, int heads,
                    float scale_log2, const std::byte* cache, bool early,
                    float* out, AttentionSplits cut) {
  constexpr int kAll = kGroups * kThreads;
  extern __shared__ std::byte memory[];
  auto& shared = *reinterpret_cast<Shared<Code, kGroups>*>(memory);
  AllowNextKernel();
  if (!early) WaitForPriorKernel();
  const int64_t t = blockIdx.x;
  const int position = places.positions[t];
  const int last_split = cut.Count(position) - 1;
  int split = Group();
  const int32_t* blocks = places.block_ids + places.tables[t];
  auto& rows = shared.groups[Group()].rows;
  int loaded = 0;  // tiles of this group so far
  const auto load = [&](int tile) {
    LoadTile<Code>(cache + int64_t{blocks[tile]} * kTile * kRow * Code::kBytes,
                   tile * kTile, position, rows[loaded++ % 2]);
    CommitCopies();
  };
  // A tile that the token's own row is not in.
  const bool ahead = early && (cut.Begin(split) + 1) * kTile <= position;
  if (split <= last_split && ahead) load(cut.Begin(split));
  WaitForPriorKernel();
  if (split <= last_split && !ahead) load(cut.Begin(split));
  const int first_head = blockIdx.y * kHeads;
  const int block_heads = min(kHeads, heads - first_head);
  LoadQuery<Code>(query + (t * heads + first_head) * kRow, block_heads,
                  scale_log2, shared);
  __syncthreads();

  Softmax sums;
  sums.Clear();
  Merged merged;
  const auto own_sum = [&](int k) { return sums.out[k / 4][k % 4]; };
  for (int added = 0; split <= last_split; split += kGroups) {
    const int end = min(cut.Begin(split + 1), position / kTile + 1);
    for (int tile = cut.Begin(split); tile < end; ++tile, ++added) {
      WaitForCopies();
      GroupSync();  // The tile is here, nobody reads the other any more.
      if (tile + 1 < end) {
        load(tile + 1);
      } else if (split + kGroups <= last_split) {
        load(cut.Begin(split + kGroups));
      }
      AddTile<Code>(shared, rows[added % 2], tile * kTile, position, sums);
    }
    if (Group() == 0) {
      merged.Add(split == 0, sums.reference, {sums.sum[0], sums.sum[2]},
                 own_sum);
    }
    if constexpr (kGroups == 2) {
      if (Group() == 1) {
        if (split > 1) BarrierSync(kEmptied, kAll);
        LeaveSplit(sums, shared);
        BarrierArrive(kFilled, kAll);
      } else if (split < last_split) {
        BarrierSync(kFilled, kAll);
        const float* at = shared.split + GroupThread();
        const float* ends = at + kSums * kThreads;
        merged.Add(false, {ends[0], ends[kThreads]},
                   {ends[2 * kThreads], ends[3 * kThreads]},
                   [&](int k) { return at[k * kThreads]; });
        if (split + 3 <= last_split) BarrierArrive(kEmptied, kAll);
      }
    }
    sums.Clear();
  }
  if (Group() == 0) {
    merged.template Store<Code>(block_heads,
                                out + (t * heads + first_head) * kLatent);
  }
}

// The splits that clusters have left, merged, a warp a head. grid (T, heads /
// 4)
__global__ void __launch_bounds__(kThreads)
    MergeKernel(AttentionParts parts, int heads, float* out) {
  AllowNextKernel();
  WaitForPriorKernel();
  const int64_t t = blockIdx.x;
  const int h = blockIdx.y * kWarps + threadIdx.x / 32;
  if (h >= heads) return;
  WarpRow<kLatent> x;
  MergeRow(parts, t, h, x);
  auto* row = reinterpret_cast<float2*>(out + (t * heads + h) * kLatent);
#pragma unroll
  for (int i = 0; i < kLatent / 64; ++i) row[32 * i + threadIdx.x % 32] = x[i];
}

int64_t Groups(int64_t heads) { return (heads + kHeads - 1) / kHeads; }

// MlaAttention, of any split.
void Attend(const LaunchOptions& options, const TokenPlaces& places,
            int64_t max_position, const float* query, int64_t heads,
            float scale, const KvLayer& cache, float* workspace, float* out,
            const AttentionSplits& cut, AttentionParts* parts);

}  // namespace

AttentionSplits FastAttentionSplits(int64_t tokens, int64_t heads,
                                    int64_t max_position) {
  const int64_t units = tokens * Groups(heads);
  if (units < kWholeUnits) return kAttentionSplits;
  // Whole sequences: groups that take turns need turns.
  return units < kPairedUnits ? EqualSplits(256)
                              : EqualSplits(max_position + 1);
}

int64_t AttentionWorkspaceFloats(int64_t tokens, int64_t heads,
                                 int64_t max_position,
                                 const AttentionSplits& cut) {
  const int64_t splits = cut.Count(max_position);
  const int64_t units = tokens * Groups(heads);
  return units >= kWholeUnits || splits == 1 ? 0
                                             : units * splits * kPartialFloats;
}

int64_t AttentionWorkspaceFloats(int64_t tokens, int64_t heads,
                                 int64_t max_position) {
  return AttentionWorkspaceFloats(tokens, heads, max_position,
                                  kAttentionSplits);
}

void MlaAttention(const LaunchOptions& options, const TokenPlaces& places,
                  int64_t max_position, const float* query, int64_t heads,
                  float scale, const KvLayer& cache, float* workspace,
                  float* out, AttentionParts* parts) {
  Attend(options, places, max_position, query, heads, scale, cache, workspace,
         out, kAttentionSplits, parts);
}

void MlaAttention(const LaunchOptions& options, const TokenPlaces& places,
                  int64_t max_position, const float* query, int64_t heads,
                  float scale, const KvLayer& cache, float* workspace,
                  float* out, const AttentionSplits& cut,
                  AttentionParts* parts) {
  Attend(options, places, max_position, query, heads, scale, cache, workspace,
         out, cut, parts);
}

namespace {

void Attend(const LaunchOptions& options, const TokenPlaces& places,
            int64_t max_position, const float* query, int64_t heads,
            float scale, const KvLayer& cache, float* workspace, float* out,
            const AttentionSplits& cut, AttentionParts* parts) {
  constexpr float kLog2E = 0x1.715476p+0f;
  const int64_t groups = Groups(heads);
  const int64_t units = places.tokens * groups;
  const int64_t splits = cut.Count(max_position);
  const bool whole = units >= kWholeUnits;
  Check(
      whole || cut.tiles <= kClusterTiles ? cudaSuccess : cudaErrorInvalidValue,
      "splits of attention longer than a cluster takes");
  DispatchKv(cache.dtype, [&]<typename Code>() {
    const auto launch = [&](auto kernel, LaunchShape shape, auto... partials) {
      Launch(kernel, shape, options, "MlaAttention", places, query,
             static_cast<int>(heads), scale * kLog2E,
             static_cast<const std::byte*>(cache.data), options.early,
             partials..., out, cut);
    };
    const auto clusters = [&]<int kBlocks>() {
      launch(ClusterKernel<Code, kBlocks>,
             {.grid = dim3(static_cast<unsigned>(kBlocks * places.tokens),
                           static_cast<unsigned>(groups),
                           static_cast<unsigned>(splits)),
              .threads = kClusterThreads,
              .shared_bytes =
                  static_cast<int>(sizeof(ClusterShared<Team<Code, kBlocks>>)),
              .cluster = kBlocks},
             workspace);
    };
    const auto sequences = [&]<int kGroups>() {
      launch(AttentionKernel<Code, kGroups>,
             {.grid = dim3(static_cast<unsigned>(places.tokens),
                           static_cast<unsigned>(groups)),
              .threads = kGroups * kThreads,
              .shared_bytes = static_cast<int>(sizeof(Shared<Code, kGroups>))});
    };
    if (whole) {
      // Several tiles of bf16 a group do not fit shared memory.
      if constexpr (Code::kBytes == 1) {
        if (splits > 1 && units < kPairedUnits) {
          return sequences.template operator()<2>();
        }
      }
      return sequences.template operator()<1>();
    }
    switch (ClusterBlocksFor(units * splits)) {
      case 8:
        return clusters.template operator()<8>();
      case 4:
        return clusters.template operator()<4>();
      case 2:
        return clusters.template operator()<2>();
      default:
        return clusters.template operator()<1>();
    }
  });
  if (whole || splits == 1) return;
  const AttentionParts left = {workspace, groups, splits, cut,
                               places.positions};
  if (parts != nullptr) {
    *parts = left;
    return;
  }
  Launch(MergeKernel,
         {.grid = dim3(static_cast<unsigned>(places.tokens),
                       static_cast<unsigned>((heads + 3) / kWarps)),
          .threads = kThreads},
         options, "MlaAttention's merge", left, static_cast<int>(heads), out);
}

}  // namespace
}  // namespace invar::cuda
