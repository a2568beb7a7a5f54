// MlaAttention for many tokens of a prompt: four neighbouring tokens share each
// tile of cached rows. The arithmetic is mla_attention.cu's, product by
// product.
//
// A block has four tokens' 16 heads, the 64 rows of its warpgroup products:
// warp w of either warpgroup has token w. Scores = Q K^T of a tile are shared
// by its cached rows, 32 a warpgroup, out = P V by latents, 256 each. Tiles
// come as operands, made once a step (StageKernel): 16-bit, swizzled, K in the
// order of operands.cuh.
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/prompt_tiles.cuh"

namespace invar::cuda {
namespace {

constexpr int kTokens = 4;  // of a block
constexpr int kHeads = 16;
constexpr int kRows = kTokens * kHeads;
constexpr int kGroups = 2;                     // multiplying warpgroups
constexpr int kScoreRows = kTile / kGroups;    // cached rows of a group
constexpr int kLatents = kLatent / kGroups;    // of a group
constexpr int kThreads = (kGroups + 1) * 128;  // a warpgroup produces
constexpr int kSteps = kRow / 16;              // of a score
static_assert(kRows == kProductRows && kTile == 64 && kTile == kBlockTokens);

constexpr int kProducerRegisters = 24;
constexpr int kMultiplierRegisters = 240;

struct Shared {
  std::byte query[kPromptTileBytes];
  std::byte rows[2][kPromptTileBytes];
  uint4 weights[kGroups][kTokens][kScoreRows / 16][32];
  float warp_max[kGroups][kRows];
  float score_factor[kRows];
  uint64_t full[2];
  uint64_t empty[2];
};
constexpr int kSharedBytes = static_cast<int>(sizeof(Shared)) + 1024;
static_assert(kSharedBytes <= 227 * 1024);

// ---- Attention --------------------------------------------------------------

struct Arguments {
  TokenPlaces places;
  const float* query;
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

// The two warps that have the same token.
__device__ void TokenSync() {
  asm volatile("bar.sync %0, 64;" ::"r"(1 + GroupWarp()) : "memory");
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
  using Operand = typename Code::Operand;
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
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      x[i] = real ? from[32 * i + lane] : float2{0.0f, 0.0f};
      largest = fmaxf(largest, fmaxf(fabsf(x[i].x), fabsf(x[i].y)));
    }
#pragma unroll
    for (int step = 16; step >= 1; step /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, step));
    }
    const float scale =
        std::is_same_v<Operand, __half> ? RowScale(largest) : 1.0f;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int at = OperandPlace<Code>(64 * i + 2 * lane);
      const int byte = at % kBlockColumns * 2;
      *reinterpret_cast<uint32_t*>(shared.query +
                                   at / kBlockColumns * kBlockBytes +
                                   SwizzledChunk(row, byte / 16) + byte % 16) =
          Pack<Operand>(x[i].x * scale, x[i].y * scale);
    }
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

// A thread's part of an online softmax over its warp's token, of heads g and
// g + 8, and of its group's latents.
template <typename Code>
struct Attention {
  using Operand = typename Code::Operand;
  static constexpr int kScores = kScoreRows / 2;  // a thread has of a tile

  Shared& shared;
  const Arguments& a;
  int position;     // of the warp's token, or -1
  float factor[2];  // of its scores
  float even[kScores];
  float odd[kScores];
  uint4 weights[kTile / 16];
  float max[2];
  float rescale[2];
  float sum[4];
  float out[2][64];
  float merged_max[2];
  float merged_sum[2];

  __device__ Attention(Shared& shared, const Arguments& a)
      : shared(shared), a(a) {}

  // even, odd = the group's scores of a tile, its steps two chains. Begun only.
  __device__ void BeginScores(const std::byte* rows) {
    const uint64_t query = TileDescriptor(Unknown(SharedAddress(shared.query)));
    const uint64_t keys = TileDescriptor(
        Unknown(SharedAddress(rows) + Group() * kScoreRows * kTileRowBytes));
    ProductFence();
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int at = (s / 4 * kBlockBytes + s % 4 * kProductBytes) / 16;
      if (s % 2 == 0) {
        Product<FormatOf<Operand>, kScoreRows>::Run(even, query + at, keys + at,
                                                    s >= 2);
      } else {
        Product<FormatOf<Operand>, kScoreRows>::Run(odd, query + at, keys + at,
                                                    s >= 2);
      }
    }
    ProductCommit();
  }

  // out += P V for the group's latents. Begun only.
  __device__ void BeginValues(const std::byte* rows) {
    constexpr int kHalf = 128 / kBlockColumns * kBlockBytes / 16;
    const uint64_t values = TransposedDescriptor(
        Unknown(SharedAddress(rows) +
                Group() * kLatents / kBlockColumns * kBlockBytes));
    ProductFence();
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
      const uint64_t at = values + s * (16 * kTileRowBytes / 16);
      ValueProduct<Operand>(out[0], weights[s], at);
      ValueProduct<Operand>(out[1], weights[s], at + kHalf);
    }
    ProductCommit();
  }

  __device__ void AddWeights() {
    constexpr uint32_t kOnes =
        std::is_same_v<Operand, __half> ? 0x3c003c00 : 0x3f803f80;
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
      Mma<Operand>(sum, weights[s], kOnes, kOnes);
    }
  }

  // The scores of tile `tile` become its weights, which LoadWeights then finds,
  // and `rescale`, what the sums before it are multiplied with.
  __device__ void Exponentials(int tile) {
    // Weights in fp16 are 2^14 times as large, clear of its subnormals.
    constexpr float kShift = std::is_same_v<Operand, __half> ? 14.0f : 0.0f;
    const int lane = threadIdx.x % 32;
    const int warp = GroupWarp();
    const int first = tile * kTile + Group() * kScoreRows;
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const int row = first + FragmentToken(lane, i);
      const int h = i / 2 % 2;
      const float score = even[i] + odd[i];
      even[i] = row <= position ? score * factor[h] : -INFINITY;
      largest[h] = fmaxf(largest[h], even[i]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      largest[h] =
          fmaxf(largest[h], __shfl_xor_sync(0xffffffff, largest[h], 1));
      largest[h] =
          fmaxf(largest[h], __shfl_xor_sync(0xffffffff, largest[h], 2));
      if (lane % 4 == 0) {
        shared.warp_max[Group()][16 * warp + lane / 4 + 8 * h] = largest[h];
      }
    }
    TokenSync();
    const bool has_rows = tile * kTile <= position;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = 16 * warp + lane / 4 + 8 * h;
      const float new_max = fmaxf(
          max[h], fmaxf(shared.warp_max[0][row], shared.warp_max[1][row]));
      // A tile past the token leaves all as it was.
      rescale[h] = has_rows ? Exp2(max[h] - new_max) : 1.0f;
      max[h] = new_max;
    }
    const uint32_t keep = has_rows ? 0xffffffff : 0;
#pragma unroll
    for (int s = 0; s < kScoreRows / 16; ++s) {
      uint32_t part[4];
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const float offset = max[p % 2] - kShift;
        part[p] = keep & Pack<Operand>(Exp2(even[8 * s + 2 * p] - offset),
                                       Exp2(even[8 * s + 2 * p + 1] - offset));
      }
      shared.weights[Group()][warp][s][lane] = {part[0], part[1], part[2],
                                                part[3]};
    }
    TokenSync();
  }

  __device__ void LoadWeights() {
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
      weights[s] = shared.weights[s / (kScoreRows / 16)][GroupWarp()]
                                 [s % (kScoreRows / 16)][threadIdx.x % 32];
    }
  }

  __device__ void Clear() {
    max[0] = max[1] = -INFINITY;
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
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = first_head + lane / 4 + 8 * h;
      if (head >= a.heads) continue;
      float* const row =
          a.out + (static_cast<int64_t>(token) * a.heads + head) * kLatent +
          Group() * kLatents + kElements * (lane % 4);
      const float all = merged_sum[h];
      const float inverse = 1.0f / all;
      uint32_t rest = 0;  // whose quotients are left to a slower loop
      const auto place = [&](int m) {
        return reinterpret_cast<float4*>(row + m / kRunSteps * (4 * kElements) +
                                         m % kRunSteps * 4);
      };
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        constexpr int kHalf = kLatents / 32;
        float4 old[kHalf];
        if (!is_first) {  // all at once: they wait for memory together
#pragma unroll
          for (int m = 0; m < kHalf; ++m) old[m] = *place(n * kHalf + m);
        }
#pragma unroll
        for (int m = 0; m < kHalf; ++m) {
          const int i = 8 * m + 2 * h;
          const float(&d)[64] = out[n];
          float4 v = {d[i], d[i + 1], d[i + 4], d[i + 5]};
          if (!is_first) {
            v = {fmaf(v.x, new_factor[h], old[m].x * old_factor[h]),
                 fmaf(v.y, new_factor[h], old[m].y * old_factor[h]),
                 fmaf(v.z, new_factor[h], old[m].z * old_factor[h]),
                 fmaf(v.w, new_factor[h], old[m].w * old_factor[h])};
          }
          if (is_last && !DivideFour(v, all, inverse)) {
            rest |= 1u << (n * kHalf + m);
          }
          *place(n * kHalf + m) = v;
        }
      }
      while (rest != 0) {
        const int m = __ffs(rest) - 1;
        rest &= rest - 1;
        float* const at = reinterpret_cast<float*>(place(m));
#pragma unroll 1
        for (int i = 0; i < 4; ++i) at[i] /= all;
      }
    }
  }
};

// grid (blocks of four tokens, the last first; groups of 16 heads)
template <typename Code>
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
      BarrierInit(&shared.full[i], 1);
      BarrierInit(&shared.empty[i], kGroups * 4);
    }
    BarrierInitFence();
  }
  __syncthreads();
  WaitForPriorKernel();
  if (Group() == kGroups) {
    ReduceRegisters<kProducerRegisters>();
    if (threadIdx.x % 128 == 0) {
      int loaded = 0;
      for (Sequence of = {-1, 0}; NextSequence(a.places, first_token, &of);) {
        for (int tile = 0; tile < of.tiles; ++tile, ++loaded) {
          const int at = loaded % 2;
          if (loaded >= 2) BarrierWait(&shared.empty[at], (loaded / 2 - 1) % 2);
          BarrierExpect(&shared.full[at], kPromptTileBytes);
          CopyBulk(shared.rows[at],
                   a.tiles + int64_t{of.table + tile} * kPromptTileBytes,
                   kPromptTileBytes, &shared.full[at]);
        }
      }
    }
    return;
  }
  RaiseRegisters<kMultiplierRegisters>();
  LoadQuery<Code>(a, first_token, first_head, shared);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  asm volatile("bar.sync 5, %0;" ::"n"(kGroups * 128) : "memory");
  const int lane = threadIdx.x % 32;
  const int warp = GroupWarp();
  Attention<Code> sums(shared, a);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    sums.factor[h] = shared.score_factor[16 * warp + lane / 4 + 8 * h];
  }
  int used = 0;  // tiles so far
  for (Sequence of = {-1, 0}; NextSequence(a.places, first_token, &of);) {
    const int token = first_token + warp;
    sums.position =
        token < a.places.tokens && a.places.tables[token] == of.table
            ? a.places.positions[token]
            : -1;
    for (int split = 0; split * a.split_tiles < of.tiles; ++split) {
      const int end = min((split + 1) * a.split_tiles, of.tiles);
      sums.Clear();
#pragma unroll 1
      for (int tile = split * a.split_tiles; tile < end; ++tile, ++used) {
        const std::byte* const rows = shared.rows[used % 2];
        BarrierWait(&shared.full[used % 2], used / 2 % 2);
        sums.BeginScores(rows);
        ProductWait<0>();
        sums.Exponentials(tile);
        sums.LoadWeights();
        sums.Rescale();
        sums.BeginValues(rows);
        sums.AddWeights();
        ProductWait<0>();
        if (lane == 0) BarrierArrive(&shared.empty[used % 2]);
      }
      sums.MergeSplit(split, token, first_head);
    }
  }
}

}  // namespace

int64_t PromptAttentionBytes(int64_t blocks) {
  return blocks * kPromptTileBytes;
}

void PromptAttention(const LaunchOptions& options, const TokenPlaces& places,
                     int64_t blocks, const float* query, int64_t heads,
                     float scale, const KvLayer& cache, std::byte* workspace,
                     float* out, int64_t split) {
  constexpr float kLog2E = 0x1.715476p+0f;
  if (places.tokens == 0) return;
  const Arguments a = {.places = places,
                       .query = query,
                       .heads = static_cast<int>(heads),
                       .scale_log2 = scale * kLog2E,
                       .tiles = workspace,
                       .out = out,
                       .split_tiles = static_cast<int>(split / kTile)};
  DispatchKv(cache.dtype, [&]<typename Code>() {
    Launch(StageKernel<Code>,
           {.grid = dim3(static_cast<unsigned>(blocks)), .threads = 128},
           options, "staging PromptAttention", places,
           static_cast<const std::byte*>(cache.data), workspace);
    Launch(PromptAttentionKernel<Code>,
           {.grid = dim3(
                static_cast<unsigned>((places.tokens + kTokens - 1) / kTokens),
                static_cast<unsigned>((heads + kHeads - 1) / kHeads)),
            .threads = kThreads,
            .shared_bytes = kSharedBytes},
           options, "PromptAttention", a);
  });
}

}  // namespace invar::cuda
