// MlaAttention for many tokens of a prompt: four neighbouring tokens share each
// tile of cached rows. The arithmetic is mla_attention.cu's, product by
// product.
//
// A block has four tokens' 16 heads, the 64 rows of its warpgroup products:
// warp w of each warpgroup has token w. One warpgroup scores a tile, Q K^T, and
// makes its weights, while two sum the tile before it, P V, 256 latents each; a
// fourth copies. Tiles come as operands, made once a step (StageKernel):
// 16-bit, swizzled, K in the order of operands.cuh.
#include "kernels/cuda/free_split.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/prompt_tiles.cuh"

namespace invar::cuda {
namespace {

constexpr int kTokens = 4;  // of a block
constexpr int kHeads = 16;
constexpr int kRows = kTokens * kHeads;
// Warpgroups: one scores, kValueGroups sum, one copies.
constexpr int kValueGroups = 2;
constexpr int kGroups = 1 + kValueGroups;         // that multiply
constexpr int kLatents = kLatent / kValueGroups;  // of a group
constexpr int kThreads = (kGroups + 1) * 128;
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

struct Shared {
  std::byte query[kPromptTileBytes];
  std::byte rows[2][kPromptTileBytes];
  // Of the tile that is scored last: what its values are multiplied with, what
  // the sums before it are, and the maximum so far.
  uint4 weights[kTokens][kTile / 16][32];
  float rescale[kRows];
  float max[kRows];
  float score_factor[kRows];
  uint64_t asked;            // queries
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
  const float* query;  // or, of the packed kernel:
  PackedQueries packed;
  int heads;
  float scale_log2;
  const std::byte* tiles;
  float* out;
  int split_tiles;
};

__device__ int Group() { return threadIdx.x / 128; }
__device__ int GroupWarp() { return threadIdx.x / 32 % 4; }

// `address`, which the compiler cannot know any more: else it keeps the many
// descriptors that are made of it in registers over the whole loop.
__device__ uint32_t Unknown(uint32_t address) {
  asm volatile("" : "+r"(address));
  return address;
}

// The next sequence that the block's tokens are of, after that of table
// `after`, nearly always the only one; false: there is none. Tables ascend.
struct Sequence {
  int table;
  int tiles;
};
__device__ bool NextSequence(const TokenPlaces& places, int first,
                             Sequence* next) {
  const int after = next->table;
  next->tiles = 0;
  for (int i = 0; i < kTokens && first + i < places.tokens; ++i) {
    const int table = places.tables[first + i];
    if (table <= after || (next->tiles > 0 && table != next->table)) continue;
    next->table = table;
    next->tiles = places.positions[first + i] / kTile + 1;
  }
  return next->tiles > 0;
}

// Rounds the block's queries to operands; the warps take turns at rows.
template <typename Code>
__device__ void LoadQuery(const Arguments& a, int first_token, int first_head,
                          Shared& shared) {
  constexpr int kPairs = kRow / 64;  // that a lane has of a row
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
#pragma unroll 4
  for (int row = warp; row < kRows; row += kGroups * 4) {
    const int64_t token = first_token + row / kHeads;
    const int head = first_head + row % kHeads;
    const bool real = token < a.places.tokens && head < a.heads;
    const auto* from = reinterpret_cast<const float2*>(
        a.query + (token * a.heads + head) * kRow);
    float2 x[kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      x[i] = real ? from[32 * i + lane] : float2{0.0f, 0.0f};
    }
    const float scale = StoreOperandRow<Code>(x, row, shared.query);
    if (lane == 0) shared.score_factor[row] = a.scale_log2 / scale;
  }
}

// x becomes x / divisor, rounded to nearest, if that is clear of where a step
// of it would not be exact; inverse is the nearest of 1 / divisor. Of four
// values either all are divided or all are left: the caller's.
__device__ bool IsPlain(float quotient) {
  return fabsf(quotient) >= 0x1p-80f && fabsf(quotient) <= 0x1p80f;
}
__device__ bool DivideFour(float4& v, float divisor, float inverse) {
  const auto divide = [&](float x) {
    float quotient = x * inverse;
    quotient = fmaf(fmaf(-divisor, quotient, x), inverse, quotient);
    return fmaf(fmaf(-divisor, quotient, x), inverse, quotient);
  };
  const float4 quotient = {divide(v.x), divide(v.y), divide(v.z), divide(v.w)};
  const bool plain = IsPlain(quotient.x) && IsPlain(quotient.y) &&
                     IsPlain(quotient.z) && IsPlain(quotient.w);
  if (plain) v = quotient;
  return plain;
}

// Of one tile after the other: where its rows lie, and the phase of their
// barriers.
struct Place {
  int tile = 0;

  __device__ int slot() const { return tile % 2; }
  __device__ uint32_t phase() const { return tile / 2 % 2; }
};

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
  __device__ void Exponentials(int tile, int before) {
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
    __syncwarp();
    if (lane == 0) BarrierArrive(&shared.scored);
  }
};

// A thread's part of the sums of its warp's token, of heads g and g + 8 and of
// its group's latents.
template <typename Code>
struct Values {
  using Operand = typename Code::Operand;

  Shared& shared;
  const Arguments& a;
  int group;     // of those that sum
  int position;  // of the warp's token, or -1
  uint4 weights[kTile / 16];
  float max[2];
  float rescale[2];
  float sum[4];
  float out[2][64];
  float merged_max[2];
  float merged_sum[2];

  __device__ Values(Shared& shared, const Arguments& a, int group)
      : shared(shared), a(a), group(group) {}

  // What was scored as tile number `tile` of the block's.
  __device__ void Take(int tile) {
    const int lane = threadIdx.x % 32;
    const int warp = GroupWarp();
    BarrierWait(&shared.scored, tile % 2);
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
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] *= rescale[i / 2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 64; ++i) out[n][i] *= rescale[i / 2 % 2];
    }
  }

  // Merged::Add of mla_attention.cu. What is merged so far waits in the output;
  // after the token's last split it is divided.
  __device__ void MergeSplit(int split, int token, int first_head) {
    const int split_rows = a.split_tiles * kTile;
    if (split * split_rows > position) return;
    const int lane = threadIdx.x % 32;
    const bool is_first = split == 0;
    const bool is_last = split == position / split_rows;
    float old_factor[2] = {0.0f, 0.0f};
    float new_factor[2] = {1.0f, 1.0f};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (is_first) {
        merged_max[h] = max[h];
        merged_sum[h] = sum[2 * h];
        continue;
      }
      const float new_max = fmaxf(merged_max[h], max[h]);
      old_factor[h] = Exp2(merged_max[h] - new_max);
      new_factor[h] = Exp2(max[h] - new_max);
      merged_max[h] = new_max;
      merged_sum[h] =
          fmaf(sum[2 * h], new_factor[h], merged_sum[h] * old_factor[h]);
    }
    constexpr int kElements = 16 / Code::kBytes;
    constexpr int kRunSteps = kElements / 4;
    constexpr int kFours = kLatents / 16;  // that a thread has of a head
    constexpr int kAhead = 8;  // of what is merged so far, asked for ahead
    float* rows[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = min(first_head + lane / 4 + 8 * h, a.heads - 1);
      rows[h] = a.out +
                (static_cast<int64_t>(token) * a.heads + head) * kLatent +
                group * kLatents + kElements * (lane % 4);
    }
    const auto place = [&](int h, int m) {
      return reinterpret_cast<float4*>(
          rows[h] + m / kRunSteps * (4 * kElements) + m % kRunSteps * 4);
    };
    float4 old[kAhead];
    if (!is_first) {
#pragma unroll
      for (int j = 0; j < kAhead; ++j) old[j] = *place(j / kFours, j % kFours);
    }
    uint32_t rest[2] = {0, 0};  // whose quotients are left to a slower loop
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bool real = first_head + lane / 4 + 8 * h < a.heads;
      const float all = merged_sum[h];
      const float inverse = 1.0f / all;
#pragma unroll
      for (int m = 0; m < kFours; ++m) {
        const float(&d)[64] = out[m / (kFours / 2)];
        const int i = 8 * (m % (kFours / 2)) + 2 * h;
        float4 v = {d[i], d[i + 1], d[i + 4], d[i + 5]};
        if (!is_first) {
          const int j = h * kFours + m;
          float4& o = old[j % kAhead];
          v = {fmaf(v.x, new_factor[h], o.x * old_factor[h]),
               fmaf(v.y, new_factor[h], o.y * old_factor[h]),
               fmaf(v.z, new_factor[h], o.z * old_factor[h]),
               fmaf(v.w, new_factor[h], o.w * old_factor[h])};
          const int next = j + kAhead;
          if (next < 2 * kFours) o = *place(next / kFours, next % kFours);
        }
        if (is_last && !DivideFour(v, all, inverse)) rest[h] |= 1u << m;
        if (real) *place(h, m) = v;
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (first_head + lane / 4 + 8 * h >= a.heads) continue;
      while (rest[h] != 0) {
        const int m = __ffs(rest[h]) - 1;
        rest[h] &= rest[h] - 1;
        float* const at = reinterpret_cast<float*>(place(h, m));
#pragma unroll 1
        for (int i = 0; i < 4; ++i) at[i] /= merged_sum[h];
      }
    }
  }
};

// f(sequence's tiles, position of the warp's token) for each sequence of the
// block's tokens.
template <typename Function>
__device__ void ForEachSequence(const TokenPlaces& places, int first_token,
                                Function f) {
  const int token = first_token + GroupWarp();
  for (Sequence of = {-1, 0}; NextSequence(places, first_token, &of);) {
    f(of, token < places.tokens && places.tables[token] == of.table
              ? places.positions[token]
              : -1);
  }
}

// grid (blocks of four tokens, the last first; groups of 16 heads)
template <typename Code, bool kPacked>
__global__ void __launch_bounds__(kThreads, 1)
    PromptAttentionKernel(const Arguments a) {
  extern __shared__ std::byte memory[];
  auto& shared = *reinterpret_cast<Shared*>(
      memory + (1024 - SharedAddress(memory) % 1024) % 1024);
  AllowNextKernel();
  const int first_head = blockIdx.y * kHeads;
  const int first_token =
      static_cast<int>(gridDim.x - 1 - blockIdx.x) * kTokens;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      for (uint64_t& part : shared.full[i]) BarrierInit(&part, 1);
      BarrierInit(&shared.empty[i], kValueGroups * 4);
    }
    BarrierInit(&shared.asked, 1);
    BarrierInit(&shared.scored, 4);
    BarrierInit(&shared.taken, kValueGroups * 4);
    BarrierInitFence();
  }
  __syncthreads();
  WaitForPriorKernel();
  Place place;
  const int lane = threadIdx.x % 32;
  const auto load_query = [&] {
    if constexpr (!kPacked) {
      LoadQuery<Code>(a, first_token, first_head, shared);
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      asm volatile("bar.sync 1, %0;" ::"n"(kGroups * 128) : "memory");
    }
  };
  if (Group() == kGroups) {
    ReduceRegisters<kProducerRegisters>();
    if (threadIdx.x % 128 != 0) return;
    if constexpr (kPacked) {
      BarrierExpect(&shared.asked, kPromptTileBytes);
      CopyBulk(shared.query,
               a.packed.tiles +
                   (int64_t{first_token / kTokens} * gridDim.y + blockIdx.y) *
                       kPromptTileBytes,
               kPromptTileBytes, &shared.asked);
    }
    ForEachSequence(a.places, first_token, [&](const Sequence& of, int) {
      for (int tile = 0; tile < of.tiles; ++tile, ++place.tile) {
        BarrierWait(&shared.empty[place.slot()], place.phase() ^ 1);
        const std::byte* const from =
            a.tiles + int64_t{of.table + tile} * kPromptTileBytes;
        for (int part = 0; part < kParts; ++part) {
          uint64_t* const full = &shared.full[place.slot()][part];
          BarrierExpect(full, kPartBytes);
          CopyBulk(shared.rows[place.slot()] + part * kPartBytes,
                   from + part * kPartBytes, kPartBytes, full);
        }
      }
    });
  } else if (Group() == 0) {
    ReduceRegisters<kScoreRegisters>();
    load_query();
    Scores<Code> scores(shared);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = lane / 4 + 8 * h;
      if constexpr (kPacked) {
        const int64_t token = min(first_token + GroupWarp(),
                                  static_cast<int>(a.places.tokens) - 1);
        scores.factor[h] =
            a.scale_log2 /
            a.packed.scales[token * kHeads * gridDim.y + first_head + head];
      } else {
        scores.factor[h] = shared.score_factor[16 * GroupWarp() + head];
      }
    }
    if constexpr (kPacked) BarrierWait(&shared.asked, 0);
    ForEachSequence(
        a.places, first_token, [&](const Sequence& of, int position) {
          scores.position = position;
#pragma unroll 1
          for (int tile = 0; tile < of.tiles; ++tile, ++place.tile) {
            if (tile % a.split_tiles == 0) {
              scores.max[0] = scores.max[1] = -INFINITY;
            }
            scores.Multiply(place);
            scores.Exponentials(tile, place.tile);
          }
        });
  } else {
    RaiseRegisters<kValueRegisters>();
    load_query();
    Values<Code> values(shared, a, Group() - 1);
    ForEachSequence(
        a.places, first_token, [&](const Sequence& of, int position) {
          values.position = position;
          for (int split = 0; split * a.split_tiles < of.tiles; ++split) {
            const int end = min((split + 1) * a.split_tiles, of.tiles);
            values.Clear();
#pragma unroll 1
            for (int tile = split * a.split_tiles; tile < end;
                 ++tile, ++place.tile) {
              values.Take(place.tile);
              values.Rescale();
              values.Multiply(shared.rows[place.slot()]);
              if (lane == 0) BarrierArrive(&shared.empty[place.slot()]);
            }
            values.MergeSplit(split, first_token + GroupWarp(), first_head);
          }
        });
  }
}

}  // namespace

int64_t PromptAttentionBytes(int64_t blocks) {
  return blocks * kPromptTileBytes;
}

namespace {

template <bool kPacked>
void Run(const LaunchOptions& options, int64_t blocks, const KvLayer& cache,
         std::byte* tiles, const Arguments& a) {
  DispatchKv(cache.dtype, [&]<typename Code>() {
    Launch(StageKernel<Code>,
           {.grid = dim3(static_cast<unsigned>(blocks)), .threads = 128},
           options, "staging PromptAttention", a.places,
           static_cast<const std::byte*>(cache.data), tiles);
    Launch(
        PromptAttentionKernel<Code, kPacked>,
        {.grid = dim3(
             static_cast<unsigned>((a.places.tokens + kTokens - 1) / kTokens),
             static_cast<unsigned>((a.heads + kHeads - 1) / kHeads)),
         .threads = kThreads,
         .shared_bytes = kSharedBytes},
        options, "PromptAttention", a);
  });
}

template <bool kPacked>
void Start(const LaunchOptions& options, int64_t blocks, float scale,
           const KvLayer& cache, std::byte* tiles, int64_t split, Arguments a) {
  constexpr float kLog2E = 0x1.715476p+0f;
  if (a.places.tokens == 0) return;
  a.scale_log2 = scale * kLog2E;
  a.tiles = tiles;
  a.split_tiles = static_cast<int>(split / kTile);
  Run<kPacked>(options, blocks, cache, tiles, a);
}

}  // namespace

void PromptAttention(const LaunchOptions& options, const TokenPlaces& places,
                     int64_t blocks, const float* query, int64_t heads,
                     float scale, const KvLayer& cache, std::byte* workspace,
                     float* out, int64_t split) {
  Start<false>(options, blocks, scale, cache, workspace, split,
               {.places = places,
                .query = query,
                .heads = static_cast<int>(heads),
                .out = out});
}

void PromptAttention(const LaunchOptions& options, const TokenPlaces& places,
                     int64_t blocks, const PackedQueries& query, int64_t heads,
                     float scale, const KvLayer& cache, std::byte* workspace,
                     float* out, int64_t split) {
  Start<true>(options, blocks, scale, cache, workspace, split,
              {.places = places,
               .packed = query,
               .heads = static_cast<int>(heads),
               .out = out});
}

void PromptAttention(const LaunchOptions& options, const TokenPlaces& places,
                     int64_t blocks, const float* query, int64_t heads,
                     float scale, const KvLayer& cache, std::byte* workspace,
                     float* out) {
  PromptAttention(options, places, blocks, query, heads, scale, cache,
                  workspace, out, kAttentionSplit);
}

void PromptAttention(const LaunchOptions& options, const TokenPlaces& places,
                     int64_t blocks, const PackedQueries& query, int64_t heads,
                     float scale, const KvLayer& cache, std::byte* workspace,
                     float* out) {
  PromptAttention(options, places, blocks, query, heads, scale, cache,
                  workspace, out, kAttentionSplit);
}

}  // namespace invar::cuda
