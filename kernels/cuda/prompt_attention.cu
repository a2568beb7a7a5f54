// MlaAttention for many tokens of a prompt: four neighbouring tokens share each
// tile of cached rows. The arithmetic is mla_attention.cu's, product by
// product.
//
// A unit of work is four tokens' 16 heads, the 64 rows of warpgroup products:
// warp w of each warpgroup has token w. One warpgroup scores a tile, Q K^T, and
// makes its weights, while two sum the tile before it, P V, 256 latents each; a
// fourth copies. Tiles come as operands, made once a step (StageKernel):
// 16-bit, swizzled, K in the order of operands.cuh.
//
// A block stays on its multiprocessor and takes one unit after the other, the
// longest first: the next one's queries and first tiles come, and are scored,
// while the sums of the last are stored.
#include <algorithm>

#include "kernels/cuda/attention_merge.cuh"
#include "kernels/cuda/free_split.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/prompt_tiles.cuh"

namespace invar::cuda {
namespace {

constexpr int kTokens = 4;  // of a unit
constexpr int kHeads = kPartialHeads;
constexpr int kRows = kTokens * kHeads;
// Warpgroups: one scores, kValueGroups sum, one copies.
constexpr int kValueGroups = 2;
constexpr int kGroups = 1 + kValueGroups;         // that multiply
constexpr int kLatents = kLatent / kValueGroups;  // of a group
constexpr int kThreads = (kGroups + 1) * 128;
constexpr int kValueThreads = kValueGroups * 128;
constexpr int kSteps = kRow / 16;  // of a score
static_assert(kRows == kProductRows && kTile == 64 && kTile == kBlockTokens);

constexpr int kProducerRegisters = 24;
constexpr int kScoreRegisters = 104;
constexpr int kValueRegisters = 192;
static_assert(kProducerRegisters + kScoreRegisters +
                  kValueGroups * kValueRegisters <=
              65536 / 128);

// A tile comes in parts, blocks of columns, so that its scores begin early.
constexpr int kParts = 3;
constexpr int kPartBytes = kPromptTileBytes / kParts;
constexpr int kPartSteps = kSteps / kParts;
static_assert(kPartSteps % (kBlockColumns / 16) == 0);

// The tokens of a unit: their sequences' tables, -1 where there is no token,
// and positions.
struct Unit {
  int index;  // -1: there are no more
  int tables[kTokens];
  int positions[kTokens];

  // f(table, tiles, whether it is the last) for each sequence of the unit's
  // tokens, nearly always the only one. Those of a sequence lie together.
  // Once the last is known as such the unit may become another one.
  template <typename Function>
  __device__ void ForEachSequence(Function f) const {
    for (int i = 0;;) {
      const int table = tables[i];
      int tiles = 0;
      for (; i < kTokens && tables[i] == table; ++i) {
        tiles = positions[i] / kTile + 1;
      }
      const bool is_last = i == kTokens || tables[i] < 0;
      f(table, tiles, is_last);
      if (is_last) return;
    }
  }
};

// What is to be done with a tile's weights for one token.
struct Step {
  int unit;  // -1: there are no more
  int flags;
};
enum StepFlag {
  kSplitEnds = 1,
  kHasRows = 2,  // the token, in this split
  kIsFirstSplit = 4,
  kIsLastSplit = 8,
};

struct Shared {
  std::byte query[kPromptTileBytes];
  std::byte rows[2][kPromptTileBytes];
  // Of the tile that is scored last: what its values are multiplied with, what
  // the sums before it are, and the maximum so far.
  uint4 weights[kTokens][kTile / 16][32];
  float rescale[kRows];
  float max[kRows];
  Step steps[kTokens];
  float largest[2][kValueGroups][kRows];  // of a unit's rows, and the next's
  Unit unit;
  uint64_t asked;            // queries
  uint64_t scored_all;       // and they have been read
  uint64_t full[2][kParts];  // rows
  uint64_t empty[2];
  uint64_t scored;  // weights
  uint64_t taken;
};
constexpr int kSharedBytes = static_cast<int>(sizeof(Shared)) + 1024;
static_assert(kSharedBytes <= 227 * 1024);

// ---- Attention --------------------------------------------------------------

struct Arguments {
  TokenPlaces places;
  PackedQueries query;
  int heads;
  int head_groups;
  int units;
  float scale_log2;
  const std::byte* tiles;
  // What a block has merged of a unit's splits: a thread its own sums.
  float4* merged;
  int* next_unit;
  AttentionSplits cut;
  // What AbsorbValue has of the latents: their code's operands, and its factors
  // of them, (heads, L), or null.
  WeightDtype weights;
  const float* factors;
  PackedAttended out;
};
constexpr int kMergedFours = kRows * kLatent / 4;  // of a block
static_assert(kMergedFours % kValueThreads == 0);

__device__ int Group() { return threadIdx.x / 128; }
__device__ int GroupWarp() { return threadIdx.x / 32 % 4; }

// Units of the last tokens, which are the longest, come first.
__device__ int FirstToken(const Arguments& a, int unit) {
  return ((a.units - 1 - unit) / a.head_groups) * kTokens;
}
__device__ int FirstHead(const Arguments& a, int unit) {
  return (a.units - 1 - unit) % a.head_groups * kHeads;
}

// Of one tile after the other, throughout all units: where its rows lie, and
// the phase of their barriers.
struct Place {
  int tile = 0;

  __device__ int slot() const { return tile % 2; }
  __device__ uint32_t phase() const { return tile / 2 % 2; }
};

// One thread copies all that the block reads.
__device__ void Produce(const Arguments& a, Shared& shared) {
  Place place;
  int index = blockIdx.x;
  for (int n = 0;; ++n) {
    Unit unit;
    unit.index = index < a.units ? index : -1;
    const int first_token = FirstToken(a, index);
    int next = 0;
    if (unit.index >= 0) {
      next = gridDim.x + atomicAdd(a.next_unit, 1);
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
        const bool real = first_token + i < a.places.tokens;
        unit.tables[i] = real ? a.places.tables[first_token + i] : -1;
        unit.positions[i] = real ? a.places.positions[first_token + i] : -1;
      }
    }
    BarrierWait(&shared.scored_all, n % 2 ^ 1);
    shared.unit = unit;
    if (unit.index < 0) {
      BarrierArrive(&shared.asked);
      return;
    }
    BarrierExpect(&shared.asked, kPromptTileBytes);
    CopyBulk(shared.query,
             a.query.tiles + (int64_t{first_token / kTokens} * a.head_groups +
                              FirstHead(a, index) / kHeads) *
                                 kPromptTileBytes,
             kPromptTileBytes, &shared.asked);
    shared.unit.ForEachSequence([&](int table, int tiles, bool) {
      for (int tile = 0; tile < tiles; ++tile, ++place.tile) {
        BarrierWait(&shared.empty[place.slot()], place.phase() ^ 1);
        const std::byte* const from =
            a.tiles + int64_t{table + tile} * kPromptTileBytes;
        for (int part = 0; part < kParts; ++part) {
          uint64_t* const full = &shared.full[place.slot()][part];
          BarrierExpect(full, kPartBytes);
          CopyBulk(shared.rows[place.slot()] + part * kPartBytes,
                   from + part * kPartBytes, kPartBytes, full);
        }
      }
    });
    index = next;
  }
}

// A thread's part of the scores of its warp's token, of heads g and g + 8.
template <typename Code>
struct Scores {
  using Operand = typename Code::Operand;
  static constexpr int kValues = kTile / 2;  // a thread has of a tile

  Shared& shared;
  int position;     // of the warp's token, or -1
  float factor[2];  // of its scores
  float max[2];
  float even[kValues];
  float odd[kValues];

  __device__ explicit Scores(Shared& shared) : shared(shared) {}

  // even, odd = the scores of a tile, its steps two chains.
  __device__ void Multiply(const Place& place) {
    const uint64_t query = TileDescriptor(Unknown(SharedAddress(shared.query)));
    const uint64_t keys =
        TileDescriptor(Unknown(SharedAddress(shared.rows[place.slot()])));
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (s % kPartSteps == 0) {
        BarrierWait(&shared.full[place.slot()][s / kPartSteps], place.phase());
        ProductFence();
      }
      const int at = (s / 4 * kBlockBytes + s % 4 * kProductBytes) / 16;
      Product<FormatOf<Operand>, kTile>::Run(s % 2 == 0 ? even : odd,
                                             query + at, keys + at, s >= 2);
    }
    ProductCommit();
    ProductWait<0>();
  }

  // The scores of tile `tile` become its weights, once those of the tile before
  // it, of which there are `before`, have been taken.
  __device__ void Exponentials(int tile, int before, const Step& step) {
    // Weights in fp16 are 2^14 times as large, clear of its subnormals.
    constexpr float kShift = std::is_same_v<Operand, __half> ? 14.0f : 0.0f;
    const int lane = threadIdx.x % 32;
    const int warp = GroupWarp();
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const int row = tile * kTile + FragmentToken(lane, i);
      const int h = i / 2 % 2;
      const float score = even[i] + odd[i];
      even[i] = row <= position ? score * factor[h] : -INFINITY;
      largest[h] = fmaxf(largest[h], even[i]);
    }
    const bool has_rows = tile * kTile <= position;
    float rescale[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      largest[h] =
          fmaxf(largest[h], __shfl_xor_sync(0xffffffff, largest[h], 1));
      largest[h] =
          fmaxf(largest[h], __shfl_xor_sync(0xffffffff, largest[h], 2));
      const float new_max = fmaxf(max[h], largest[h]);
      // A tile past the token leaves all as it was.
      rescale[h] = has_rows ? Exp2(max[h] - new_max) : 1.0f;
      max[h] = new_max;
    }
    const uint32_t keep = has_rows ? 0xffffffff : 0;
    uint32_t parts[kTile / 16][4];
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const float offset = max[p % 2] - kShift;
        parts[s][p] =
            keep & Pack<Operand>(Exp2(even[8 * s + 2 * p] - offset),
                                 Exp2(even[8 * s + 2 * p + 1] - offset));
      }
    }
    BarrierWait(&shared.taken, before % 2 ^ 1);
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
      shared.weights[warp][s][lane] = {parts[s][0], parts[s][1], parts[s][2],
                                       parts[s][3]};
    }
    if (lane % 4 == 0) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = 16 * warp + lane / 4 + 8 * h;
        shared.rescale[row] = rescale[h];
        shared.max[row] = max[h];
      }
    }
    Publish(step);
  }

  __device__ void Publish(const Step& step) {
    const int lane = threadIdx.x % 32;
    if (lane == 0) shared.steps[GroupWarp()] = step;
    __syncwarp();
    if (lane == 0) BarrierArrive(&shared.scored);
  }

  // All tiles of the unit's sequences, `place` on.
  __device__ void Walk(const Arguments& a, Place& place) {
    const int token_table = shared.unit.tables[GroupWarp()];
    const int token_position = shared.unit.positions[GroupWarp()];
    const int unit = shared.unit.index;
    shared.unit.ForEachSequence([&](int table, int tiles, bool is_last) {
      position = token_table == table ? token_position : -1;
      int split = -1;
      int end = 0;
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile, ++place.tile) {
        if (tile == end) {
          end = a.cut.Begin(++split + 1);
          max[0] = max[1] = -INFINITY;
        }
        Step step = {unit, 0};
        if (tile + 1 == end || tile + 1 == tiles) {
          step.flags = kSplitEnds |
                       (a.cut.Begin(split) * kTile <= position ? kHasRows : 0) |
                       (split == 0 ? kIsFirstSplit : 0) |
                       (position < end * kTile ? kIsLastSplit : 0);
        }
        Multiply(place);
        if (is_last && tile + 1 == tiles && threadIdx.x % 32 == 0) {
          BarrierArrive(&shared.scored_all);
        }
        Exponentials(tile, place.tile, step);
      }
    });
  }
};

// A thread's part of the sums of its warp's token, of heads g and g + 8 and of
// its group's latents.
template <typename Code>
struct Values {
  using Operand = typename Code::Operand;
  static constexpr int kFours = kLatents / 16;  // that it has of a head

  Shared& shared;
  const Arguments& a;
  int group;  // of those that sum
  Step step;
  uint4 weights[kTile / 16];
  float max[2];
  float rescale[2];
  float sum[4];
  float out[2][64];
  MergedSplits heads[2];

  __device__ Values(Shared& shared, const Arguments& a, int group)
      : shared(shared), a(a), group(group) {}

  // What was scored as tile number `tile` of the block's.
  __device__ void Take(int tile) {
    const int lane = threadIdx.x % 32;
    const int warp = GroupWarp();
    BarrierWait(&shared.scored, tile % 2);
    step = shared.steps[warp];
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
      weights[s] = shared.weights[warp][s][lane];
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      rescale[h] = shared.rescale[16 * warp + lane / 4 + 8 * h];
      max[h] = shared.max[16 * warp + lane / 4 + 8 * h];
    }
    __syncwarp();
    if (lane == 0) BarrierArrive(&shared.taken);
  }

  // out += P V for the group's latents.
  __device__ void Multiply(const std::byte* rows) {
    constexpr uint32_t kOnes =
        std::is_same_v<Operand, __half> ? 0x3c003c00 : 0x3f803f80;
    constexpr int kHalf = 128 / kBlockColumns * kBlockBytes / 16;
    const uint64_t values = TransposedDescriptor(Unknown(
        SharedAddress(rows) + group * kLatents / kBlockColumns * kBlockBytes));
    ProductFence();
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
      const uint64_t at = values + s * (16 * kTileRowBytes / 16);
      ValueProduct<Operand>(out[0], weights[s], at);
      ValueProduct<Operand>(out[1], weights[s], at + kHalf);
    }
    ProductCommit();
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
      Mma<Operand>(sum, weights[s], kOnes, kOnes);
    }
    ProductWait<0>();
  }

  __device__ void Clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = 0.0f;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 64; ++i) out[n][i] = 0.0f;
    }
  }

  __device__ void Rescale() {
    // Times one leaves all as it is.
    if (__all_sync(0xffffffff, rescale[0] == 1.0f && rescale[1] == 1.0f)) {
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] *= rescale[i / 2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 64; ++i) out[n][i] *= rescale[i / 2 % 2];
    }
  }

  // Merges what is summed of a split with those before it, which wait in
  // memory that the L2 cache holds: registers have no room for them.
  __device__ __forceinline__ void Merge() {
    const bool is_first = step.flags & kIsFirstSplit;
    const bool is_last = step.flags & kIsLastSplit;
#pragma unroll
    for (int h = 0; h < 2; ++h) heads[h].Add(is_first, max[h], sum[2 * h]);
    if (is_first && !is_last) {
#pragma unroll
      for (int j = 0; j < 2 * kFours; ++j) __stcg(Merged(j), Four(j));
    } else if (!is_first && !is_last) {
      ForEachMerged([&](int j, const float4& x) { __stcg(Merged(j), x); });
    } else if (!is_first) {
      ForEachMerged([&](int j, const float4& x) {
        Sum(j / kFours, j % kFours, 0) = x.x;
        Sum(j / kFours, j % kFours, 1) = x.y;
        Sum(j / kFours, j % kFours, 2) = x.z;
        Sum(j / kFours, j % kFours, 3) = x.w;
      });
    }
  }
  // f(j, what Four(j) and Merged(j) come to together).
  template <typename Function>
  __device__ __forceinline__ void ForEachMerged(Function f) {
    constexpr int kAhead = 8;  // asked for ahead
    float4 old[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) old[j] = __ldcg(Merged(j));
#pragma unroll
    for (int j = 0; j < 2 * kFours; ++j) {
      const MergedSplits& head = heads[j / kFours];
      const float4 o = old[j % kAhead];
      const float4 x = Four(j);
      if (j + kAhead < 2 * kFours) old[j % kAhead] = __ldcg(Merged(j + kAhead));
      f(j, {head.Merge(false, x.x, o.x), head.Merge(false, x.y, o.y),
            head.Merge(false, x.z, o.z), head.Merge(false, x.w, o.w)});
    }
  }
  __device__ float4 Four(int j) {
    const int h = j / kFours;
    const int m = j % kFours;
    return {Sum(h, m, 0), Sum(h, m, 1), Sum(h, m, 2), Sum(h, m, 3)};
  }
  __device__ float4* Merged(int j) const {
    return a.merged + int64_t{blockIdx.x} * kMergedFours + group * 128 +
           threadIdx.x % 128 + j * kValueThreads;
  }

  // Of head g + 8 h the sum of latent Column(m) + i.
  __device__ __forceinline__ float& Sum(int h, int m, int i) {
    return out[m / (kFours / 2)]
              [8 * (m % (kFours / 2)) + 2 * h + i / 2 * 4 + i % 2];
  }
  __device__ int Column(int m) const {
    constexpr int kElements = 16 / Code::kBytes;
    constexpr int kRunSteps = kElements / 4;
    return group * kLatents + m / kRunSteps * (4 * kElements) +
           kElements * (threadIdx.x % 4) + m % kRunSteps * 4;
  }

  // The merged sums become means, and these operands beside `Weight`s: as
  // PackRow of operands.cuh rounds them.
  template <typename Weight>
  __device__ __forceinline__ void Finish(int unit_count) {
    using Rounded = typename Weight::Operand;
    const int lane = threadIdx.x % 32;
    const int warp = GroupWarp();
    const int64_t token = FirstToken(a, step.unit) + warp;
    const int first_head = FirstHead(a, step.unit) + lane / 4;
    float(&largest)[kValueGroups][kRows] = shared.largest[unit_count % 2];
    float most[2] = {0.0f, 0.0f};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float inverse = heads[h].Inverse();
      const int head = min(first_head + 8 * h, a.heads - 1);
#pragma unroll
      for (int m = 0; m < kFours; ++m) {
        float4 factors = {1.0f, 1.0f, 1.0f, 1.0f};
        if (a.factors != nullptr) {
          factors = *reinterpret_cast<const float4*>(
              a.factors + head * kLatent + Column(m));
        }
        const auto scale = [&](int i, float factor) {
          float& x = Sum(h, m, i);
          x *= inverse;
          if (a.factors != nullptr) x *= factor;
          most[h] = fmaxf(most[h], fabsf(x));
        };
        scale(0, factors.x);
        scale(1, factors.y);
        scale(2, factors.z);
        scale(3, factors.w);
      }
      most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffff, most[h], 1));
      most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffff, most[h], 2));
      if (lane % 4 == 0) largest[group][16 * warp + lane / 4 + 8 * h] = most[h];
    }
    // The warps of both groups that have the token.
    asm volatile("bar.sync %0, 64;" ::"r"(1 + warp) : "memory");
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = first_head + 8 * h;
      const float scale = OperandScale<Rounded>(
          fmaxf(most[h], largest[1 - group][16 * warp + lane / 4 + 8 * h]));
      if (head >= a.heads) continue;
      const int64_t row = head * a.places.tokens + token;
      if (group == 0 && lane % 4 == 0) a.out.scales[row] = scale;
#pragma unroll
      for (int m = 0; m < kFours; m += 2) {
        const auto pack = [&](int n, int i) {
          return Pack<Rounded>(Sum(h, n, i) * scale, Sum(h, n, i + 1) * scale);
        };
        *AttendedPiece<Weight>(a.out.rows + row * kAttendedRowBytes,
                               Column(m)) = {pack(m, 0), pack(m, 2),
                                             pack(m + 1, 0), pack(m + 1, 2)};
      }
    }
  }
};

// A block a multiprocessor.
template <typename Code>
__global__ void __launch_bounds__(kThreads, 1)
    PromptAttentionKernel(const __grid_constant__ Arguments a) {
  extern __shared__ std::byte memory[];
  auto& shared = *reinterpret_cast<Shared*>(
      memory + (1024 - SharedAddress(memory) % 1024) % 1024);
  AllowNextKernel();
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      for (uint64_t& part : shared.full[i]) BarrierInit(&part, 1);
      BarrierInit(&shared.empty[i], kValueGroups * 4);
    }
    BarrierInit(&shared.asked, 1);
    BarrierInit(&shared.scored_all, 4);
    BarrierInit(&shared.scored, 4);
    BarrierInit(&shared.taken, kValueGroups * 4);
    BarrierInitFence();
  }
  __syncthreads();
  WaitForPriorKernel();
  const int lane = threadIdx.x % 32;
  if (Group() == kGroups) {
    ReduceRegisters<kProducerRegisters>();
    if (threadIdx.x % 128 == 0) Produce(a, shared);
  } else if (Group() == 0) {
    ReduceRegisters<kScoreRegisters>();
    Scores<Code> scores(shared);
    Place place;
    for (int n = 0;; ++n) {
      BarrierWait(&shared.asked, n % 2);
      const int unit = shared.unit.index;
      if (unit < 0) break;
      const int64_t token = min(FirstToken(a, unit) + GroupWarp(),
                                static_cast<int>(a.places.tokens) - 1);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int head = FirstHead(a, unit) + lane / 4 + 8 * h;
        scores.factor[h] =
            a.scale_log2 /
            a.query.scales[token * kHeads * a.head_groups + head];
      }
      scores.Walk(a, place);
    }
    BarrierWait(&shared.taken, place.tile % 2 ^ 1);
    scores.Publish({-1, 0});
  } else {
    RaiseRegisters<kValueRegisters>();
    Values<Code> values(shared, a, Group() - 1);
    int finished = 0;
    for (Place place;;) {
      values.Clear();
#pragma unroll 1
      do {
        values.Take(place.tile);
        if (values.step.unit < 0) return;
        values.Rescale();
        values.Multiply(shared.rows[place.slot()]);
        if (lane == 0) BarrierArrive(&shared.empty[place.slot()]);
        ++place.tile;
      } while (!(values.step.flags & kSplitEnds));
      if (!(values.step.flags & kHasRows)) continue;
      values.Merge();
      if (!(values.step.flags & kIsLastSplit)) continue;
      if (a.weights == WeightDtype::kFp8E4m3) {
        values.template Finish<E4m3>(finished);
      } else if (a.weights == WeightDtype::kFp16) {
        values.template Finish<Fp16>(finished);
      } else {
        values.template Finish<Bf16>(finished);
      }
      ++finished;
    }
  }
}

// Behind the tiles.
constexpr int64_t kCounterBytes = 128;
int* NextUnit(int64_t blocks, std::byte* workspace) {
  return reinterpret_cast<int*>(workspace + blocks * kPromptTileBytes);
}

}  // namespace

int64_t PromptAttentionBytes(int64_t blocks) {
  return blocks * kPromptTileBytes + kCounterBytes +
         Multiprocessors() * (kMergedFours * int64_t{sizeof(float4)});
}

void StagePrompts(const LaunchOptions& options, const TokenPlaces& places,
                  int64_t blocks, const KvLayer& cache, std::byte* workspace) {
  if (places.tokens == 0) return;
  DispatchKv(cache.dtype, [&]<typename Code>() {
    Launch(StageKernel<Code>,
           {.grid = dim3(static_cast<unsigned>(blocks)), .threads = 128},
           options, "StagePrompts", places,
           static_cast<const std::byte*>(cache.data), workspace,
           NextUnit(blocks, workspace));
  });
}

void PromptAttention(const LaunchOptions& options, const TokenPlaces& places,
                     int64_t blocks, const PackedQueries& query,
                     const HeadProjection& v, float scale, const KvLayer& cache,
                     std::byte* workspace, const PackedAttended& out,
                     const AttentionSplits& cut) {
  constexpr float kLog2E = 0x1.715476p+0f;
  if (places.tokens == 0) return;
  const auto heads = static_cast<int>(v.heads);
  const int head_groups = (heads + kHeads - 1) / kHeads;
  const Arguments a = {
      .places = places,
      .query = query,
      .heads = heads,
      .head_groups = head_groups,
      .units = static_cast<int>((places.tokens + kTokens - 1) / kTokens) *
               head_groups,
      .scale_log2 = scale * kLog2E,
      .tiles = workspace,
      .merged = reinterpret_cast<float4*>(
          workspace + blocks * kPromptTileBytes + kCounterBytes),
      .next_unit = NextUnit(blocks, workspace),
      .cut = cut,
      .weights = v.dtype,
      .factors = v.input_scales,
      .out = out};
  DispatchKv(cache.dtype, [&]<typename Code>() {
    Launch(PromptAttentionKernel<Code>,
           {.grid = dim3(std::min(a.units, Multiprocessors())),
            .threads = kThreads,
            .shared_bytes = kSharedBytes},
           options, "PromptAttention", a);
  });
}

void PromptAttention(const LaunchOptions& options, const TokenPlaces& places,
                     int64_t blocks, const PackedQueries& query,
                     const HeadProjection& v, float scale, const KvLayer& cache,
                     std::byte* workspace, const PackedAttended& out) {
  PromptAttention(options, places, blocks, query, v, scale, cache, workspace,
                  out, kAttentionSplits);
}

}  // namespace invar::cuda
