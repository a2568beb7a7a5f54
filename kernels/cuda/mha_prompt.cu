// A block has 128 tokens of one head: two warpgroups of 64 multiply, a third
// produces. Tiles of 128 keys and of their values come by the copy engine, two
// of each in flight. While a warpgroup's weights multiply the values of a tile,
// its scores of the next one become weights.
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/mha_prompt.h"
#include "kernels/cuda/prompt_tiles.cuh"
#include "kernels/cuda/silu_mul.h"

namespace invar::cuda {
namespace {

using Operand = __nv_bfloat16;

constexpr int kWidth = kNope + kRope;          // of a query and a key
constexpr int kBoxBytes = 64 * kTileRowBytes;  // 64 rows by 64 columns
constexpr int kColumnBytes = 2 * kBoxBytes;    // 128 rows by 64 columns
constexpr int kKeyBytes = kWidth / 64 * kColumnBytes;
constexpr int kValueBytes = kValue / 64 * kColumnBytes;
constexpr int kStages = 2;
constexpr int kGroups = 2;
constexpr int kThreads = (kGroups + 1) * 128;
constexpr int kProducerRegisters = 24;
constexpr int kMultiplierRegisters = 240;
static_assert(kMhaTokens == 64 * kGroups && kMhaRows == 128);
static_assert(kNope == 128 && kRope == 64 && kValue == 128);

// ---- What comes before ------------------------------------------------------

template <typename Code>
__device__ float WeightValue(const std::byte* data, int64_t at) {
  if constexpr (Code::kBytes == 1) {
    const uint32_t pair =
        Code::Decode2(reinterpret_cast<const uint8_t*>(data)[at]);
    return __half2float(__ushort_as_half(static_cast<uint16_t>(pair)));
  } else if constexpr (std::is_same_v<typename Code::Operand, __half>) {
    return __half2float(reinterpret_cast<const __half*>(data)[at]);
  } else {
    return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(data)[at]);
  }
}

// grid (H * (N + V)): a row a block.
template <typename Code>
__global__ void MhaWeightsKernel(HeadProjection k, HeadProjection v,
                                 __nv_bfloat16* weights) {
  const int h = blockIdx.x / (kNope + kValue);
  const int row = blockIdx.x % (kNope + kValue);
  for (int l = threadIdx.x; l < kLatent; l += blockDim.x) {
    float value;
    if (row < kNope) {  // of K transposed, (H, L, N)
      value =
          WeightValue<Code>(k.data, (int64_t{h} * kLatent + l) * kNope + row);
      if (k.input_scales != nullptr) value *= k.input_scales[h * kNope + row];
      if (k.row_scales != nullptr) value *= k.row_scales[h * kLatent + l];
    } else {
      const int r = row - kNope;
      value =
          WeightValue<Code>(v.data, (int64_t{h} * kValue + r) * kLatent + l);
      if (v.input_scales != nullptr) value *= v.input_scales[h * kLatent + l];
      if (v.row_scales != nullptr) value *= v.row_scales[h * kValue + r];
    }
    weights[int64_t{blockIdx.x} * kLatent + l] = __float2bfloat16_rn(value);
  }
}

// Four cached elements as bf16: exact.
template <typename Code>
__device__ uint2 Widen4(const std::byte* row, int quad) {
  if constexpr (Code::kBytes == 2) {
    return reinterpret_cast<const uint2*>(row)[quad];
  } else {
    const uint2 halves =
        Code::Decode4(reinterpret_cast<const uint32_t*>(row)[quad]);
    const auto widen = [](uint32_t pair) {
      const float2 x = __half22float2(*reinterpret_cast<const __half2*>(&pair));
      return Pack<Operand>(x.x, x.y);
    };
    return {widen(halves.x), widen(halves.y)};
  }
}

// The sequence of a row, or of a tile of queries.
template <typename First>
__device__ const MhaSequence& SequenceOf(const MhaSequences& sequences, int at,
                                         First first) {
  int s = 0;
  while (s + 1 < sequences.count && first(sequences.of[s + 1]) <= at) ++s;
  return sequences.of[s];
}

// grid (rows / 64): a block of the cache a block, or zeros.
template <typename Code>
__global__ void __launch_bounds__(256)
    MhaGatherKernel(const __grid_constant__ MhaSequences sequences,
                    const int32_t* block_ids, const std::byte* cache,
                    __nv_bfloat16* latents, __nv_bfloat16* rope_keys) {
  constexpr int kQuads = kRow / 4;
  AllowNextKernel();
  WaitForPriorKernel();
  const int first_row = blockIdx.x * static_cast<int>(kBlockTokens);
  const MhaSequence& sequence = SequenceOf(
      sequences, first_row, [](const MhaSequence& s) { return s.first_row; });
  const int first = first_row - sequence.first_row;
  const int rows = sequence.first_position + sequence.tokens - first;
  const std::byte* from = cache;
  if (rows > 0) {
    from += int64_t{block_ids[sequence.table +
                              first / static_cast<int>(kBlockTokens)]} *
            kBlockTokens * kRow * Code::kBytes;
  }
  for (int i = threadIdx.x; i < static_cast<int>(kBlockTokens) * kQuads;
       i += blockDim.x) {
    const int row = i / kQuads;
    const int quad = i % kQuads;
    const uint2 values =
        row < rows ? Widen4<Code>(from + row * (kRow * Code::kBytes), quad)
                   : uint2{0, 0};
    const int64_t to = first_row + row;
    if (quad < kLatent / 4) {
      reinterpret_cast<uint2*>(latents + to * kLatent)[quad] = values;
    } else {
      reinterpret_cast<uint2*>(rope_keys + to * kRope)[quad - kLatent / 4] =
          values;
    }
  }
}

// grid (T), pairs of a token's queries.
__global__ void __launch_bounds__(256)
    MhaQueryKernel(TokenPlaces places, RopeAngles angles, int heads,
                   const float* q, __nv_bfloat16* query) {
  AllowNextKernel();
  WaitForPriorKernel();
  const int64_t t = blockIdx.x;
  const int64_t angle = int64_t{places.positions[t]} * (kRope / 2);
  const auto* from = reinterpret_cast<const float2*>(q + t * heads * kWidth);
  auto* to = reinterpret_cast<uint32_t*>(query + t * heads * kWidth);
  for (int i = threadIdx.x; i < heads * kWidth / 2; i += blockDim.x) {
    const int pair = i % (kWidth / 2) - kNope / 2;
    float2 x = from[i];
    if (pair >= 0) {
      const float cosine = angles.cosines[angle + pair];
      const float sine = angles.sines[angle + pair];
      x = {x.x * cosine - x.y * sine, x.x * sine + x.y * cosine};
    }
    to[i] = Pack<Operand>(x.x, x.y);
  }
}

// ---- Attention --------------------------------------------------------------

struct Shared {
  std::byte query[kKeyBytes];
  std::byte keys[kStages][kKeyBytes];
  std::byte values[kStages][kValueBytes];
  uint64_t query_full;
  uint64_t keys_full[kStages], keys_empty[kStages];
  uint64_t values_full[kStages], values_empty[kStages];
};
constexpr int kSharedBytes = static_cast<int>(sizeof(Shared)) + 1024;
static_assert(kSharedBytes <= 227 * 1024);

struct Arguments {
  int heads;
  float scale_log2;
  float value_scale;
  InputSink out;
};

// What an asynchronous product has written is read after this, not before.
template <int kCount>
__device__ void Settle(float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

// By one thread: the tiles of keys and values, keys a tile ahead.
__device__ void ProduceTiles(Shared& shared, const CUtensorMap* query,
                             const CUtensorMap* keys_values,
                             const CUtensorMap* rope_keys, int head, int token,
                             int first_row, int tiles) {
  constexpr int kHeadBytes = (kNope + kValue) * 2;
  BarrierExpect(&shared.query_full, kKeyBytes);
  for (int c = 0; c < kWidth / 64; ++c) {
    for (int half = 0; half < 2; ++half) {
      CopyBox(shared.query + c * kColumnBytes + half * kBoxBytes, query,
              head * kWidth * 2 + c * kTileRowBytes, token + 64 * half,
              &shared.query_full);
    }
  }
  const auto load_keys = [&](int tile) {
    const int stage = tile % kStages;
    if (tile >= kStages) {
      BarrierWait(&shared.keys_empty[stage], (tile / kStages - 1) % 2);
    }
    BarrierExpect(&shared.keys_full[stage], kKeyBytes);
    for (int c = 0; c < kWidth / 64; ++c) {
      const bool rope = c == kNope / 64;
      for (int half = 0; half < 2; ++half) {
        CopyBox(shared.keys[stage] + c * kColumnBytes + half * kBoxBytes,
                rope ? rope_keys : keys_values,
                rope ? 0 : head * kHeadBytes + c * kTileRowBytes,
                first_row + tile * kMhaRows + 64 * half,
                &shared.keys_full[stage]);
      }
    }
  };
  load_keys(0);
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) load_keys(tile + 1);
    const int stage = tile % kStages;
    if (tile >= kStages) {
      BarrierWait(&shared.values_empty[stage], (tile / kStages - 1) % 2);
    }
    BarrierExpect(&shared.values_full[stage], kValueBytes);
    for (int half = 0; half < 2; ++half) {  // as TransposedDescriptor has it
      for (int c = 0; c < kValue / 64; ++c) {
        CopyBox(shared.values[stage] + half * kColumnBytes + c * kBoxBytes,
                keys_values, head * kHeadBytes + kNope * 2 + c * kTileRowBytes,
                first_row + tile * kMhaRows + 64 * half,
                &shared.values_full[stage]);
      }
    }
  }
}

// A thread's part of an online softmax: rows g and g + 8 of its warp's sixteen.
struct Sums {
  float max[2];
  float sum[2];
  float rescale[2];
  float out[64];
  uint4 weights[kMhaRows / 16];

  // Scores of keys [first, first + 128) become their exponentials. position: of
  // row g; a tile that no row of the warpgroup sees the end of is masked.
  __device__ void Exponentials(float (&s)[64], int first, int position,
                               bool masked, float scale_log2) {
    float largest[2] = {max[0], max[1]};
    if (masked) {
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        const int h = i / 2 % 2;
        const int key = first + FragmentToken(threadIdx.x % 128, i);
        s[i] = key <= position + 8 * h ? s[i] : -INFINITY;
      }
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      largest[i / 2 % 2] = fmaxf(largest[i / 2 % 2], s[i]);
    }
    float offset[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      largest[h] =
          fmaxf(largest[h], __shfl_xor_sync(0xffffffff, largest[h], 1));
      largest[h] =
          fmaxf(largest[h], __shfl_xor_sync(0xffffffff, largest[h], 2));
      offset[h] = largest[h] * scale_log2;
      rescale[h] = Exp2(fmaf(max[h], scale_log2, -offset[h]));
      max[h] = largest[h];
      sum[h] *= rescale[h];
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      const int h = i / 2 % 2;
      s[i] = Exp2(fmaf(s[i], scale_log2, -offset[h]));
      sum[h] += s[i];
    }
  }

  __device__ void SetWeights(const float (&s)[64]) {
#pragma unroll
    for (int k = 0; k < kMhaRows / 16; ++k) {
      weights[k] = {Pack<Operand>(s[8 * k], s[8 * k + 1]),
                    Pack<Operand>(s[8 * k + 2], s[8 * k + 3]),
                    Pack<Operand>(s[8 * k + 4], s[8 * k + 5]),
                    Pack<Operand>(s[8 * k + 6], s[8 * k + 7])};
    }
  }

  __device__ void Rescale() {
#pragma unroll
    for (int i = 0; i < 64; ++i) out[i] *= rescale[i / 2 % 2];
  }

  // out += weights values. Begun only.
  __device__ void BeginValues(const std::byte* values) {
    const uint64_t at = TransposedDescriptor(SharedAddress(values));
    ProductFence();
#pragma unroll
    for (int k = 0; k < kMhaRows / 16; ++k) {
      ValueProduct<Operand>(
          out, weights[k],
          at + (k / 4 * kColumnBytes + k % 4 * 16 * kTileRowBytes) / 16);
    }
    ProductCommit();
  }
};

// scores = queries keys^T. Begun only.
__device__ void BeginScores(const std::byte* query, const std::byte* keys,
                            float (&scores)[64]) {
  const uint64_t a = TileDescriptor(SharedAddress(query));
  const uint64_t b = TileDescriptor(SharedAddress(keys));
  ProductFence();
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) {
    const int at = (k / 4 * kColumnBytes + k % 4 * kProductBytes) / 16;
    Product<Bf16Format, kMhaRows>::Run(scores, a + at, b + at, k != 0);
  }
  ProductCommit();
}

// grid (tiles of queries, the last first; H)
__global__ void __launch_bounds__(kThreads, 1)
    MhaAttentionKernel(const __grid_constant__ CUtensorMap query,
                       const __grid_constant__ CUtensorMap keys_values,
                       const __grid_constant__ CUtensorMap rope_keys,
                       const __grid_constant__ MhaSequences sequences,
                       const Arguments a) {
  extern __shared__ std::byte memory[];
  auto& shared = *reinterpret_cast<Shared*>(TileAligned(memory));
  AllowNextKernel();
  const int tile = sequences.tiles - 1 - static_cast<int>(blockIdx.x);
  const MhaSequence& sequence = SequenceOf(
      sequences, tile, [](const MhaSequence& s) { return s.first_tile; });
  const int head = blockIdx.y;
  const int first = (tile - sequence.first_tile) * kMhaTokens;
  const int tokens = min(kMhaTokens, sequence.tokens - first);
  const int first_token = sequence.first_token + first;
  const int first_position = sequence.first_position + first;
  const int tiles = (first_position + tokens - 1) / kMhaRows + 1;
  if (threadIdx.x == 0) {
    BarrierInit(&shared.query_full, 1);
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(&shared.keys_full[i], 1);
      BarrierInit(&shared.values_full[i], 1);
      BarrierInit(&shared.keys_empty[i], kGroups * 4);
      BarrierInit(&shared.values_empty[i], kGroups * 4);
    }
    BarrierInitFence();
  }
  __syncthreads();
  WaitForPriorKernel();
  const int group = threadIdx.x / 128;
  if (group == kGroups) {
    ReduceRegisters<kProducerRegisters>();
    if (threadIdx.x % 128 == 0) {
      ProduceTiles(shared, &query, &keys_values, &rope_keys, head, first_token,
                   sequence.first_row, tiles);
    }
    return;
  }
  RaiseRegisters<kMultiplierRegisters>();
  const int thread = threadIdx.x % 128;
  const bool leader = threadIdx.x % 32 == 0;
  const int row = 64 * group + FragmentRow(thread, 0);  // and row + 8
  const int group_position = first_position + 64 * group;
  const std::byte* const my_query = shared.query + group * kBoxBytes;
  Sums sums;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    sums.max[h] = -INFINITY;
    sums.sum[h] = 0.0f;
  }
#pragma unroll
  for (int i = 0; i < 64; ++i) sums.out[i] = 0.0f;
  const auto exponentials = [&](float(&s)[64], int t) {
    sums.Exponentials(s, t * kMhaRows, first_position + row,
                      (t + 1) * kMhaRows - 1 > group_position, a.scale_log2);
  };
  float scores[64];
  BarrierWait(&shared.query_full, 0);
  BarrierWait(&shared.keys_full[0], 0);
  BeginScores(my_query, shared.keys[0], scores);
  ProductWait<0>();
  Settle(scores);
  if (leader) BarrierArrive(&shared.keys_empty[0]);
  exponentials(scores, 0);
  sums.SetWeights(scores);
#pragma unroll 1
  for (int t = 1; t < tiles; ++t) {
    const int stage = t % kStages;
    const int before = (t - 1) % kStages;
    BarrierWait(&shared.keys_full[stage], t / kStages % 2);
    BeginScores(my_query, shared.keys[stage], scores);
    BarrierWait(&shared.values_full[before], (t - 1) / kStages % 2);
    sums.BeginValues(shared.values[before]);
    ProductWait<1>();
    Settle(scores);
    if (leader) BarrierArrive(&shared.keys_empty[stage]);
    exponentials(scores, t);
    ProductWait<0>();
    Settle(sums.out);
    if (leader) BarrierArrive(&shared.values_empty[before]);
    sums.Rescale();
    sums.SetWeights(scores);
  }
  const int last = (tiles - 1) % kStages;
  BarrierWait(&shared.values_full[last], (tiles - 1) / kStages % 2);
  sums.BeginValues(shared.values[last]);
  ProductWait<0>();
  Settle(sums.out);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = sums.sum[h];
    sum += __shfl_xor_sync(0xffffffff, sum, 1);
    sum += __shfl_xor_sync(0xffffffff, sum, 2);
    if (row + 8 * h >= tokens) continue;
    const float factor = a.value_scale / sum;
    const int64_t at =
        (static_cast<int64_t>(first_token + row + 8 * h) * a.heads + head) *
        kValue;
#pragma unroll
    for (int n = 0; n < kValue / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        StoreInput(a.out, at + FragmentToken(thread, 4 * n + i),
                   sums.out[4 * n + 2 * h + i] * factor);
      }
    }
  }
}

}  // namespace

void MhaWeights(const LaunchOptions& options, const HeadProjection& k,
                const HeadProjection& v, __nv_bfloat16* weights) {
  const auto launch = [&]<typename Code>() {
    Launch(MhaWeightsKernel<Code>,
           {.grid = dim3(static_cast<unsigned>(k.heads * (kNope + kValue))),
            .threads = 128},
           options, "MhaWeights", k, v, weights);
  };
  switch (k.dtype) {
    case WeightDtype::kFp8E4m3:
      return launch.template operator()<E4m3>();
    case WeightDtype::kFp16:
      return launch.template operator()<Fp16>();
    case WeightDtype::kBf16:
      return launch.template operator()<Bf16>();
    case WeightDtype::kFp32:
      return;  // the loader refuses it
  }
}

void MhaGather(const LaunchOptions& options, const MhaSequences& sequences,
               const int32_t* block_ids, const KvLayer& cache,
               __nv_bfloat16* latents, __nv_bfloat16* rope_keys) {
  DispatchKv(cache.dtype, [&]<typename Code>() {
    Launch(MhaGatherKernel<Code>,
           {.grid = dim3(static_cast<unsigned>(sequences.rows / kBlockTokens)),
            .threads = 256},
           options, "MhaGather", sequences, block_ids,
           static_cast<const std::byte*>(cache.data), latents, rope_keys);
  });
}

void MhaQuery(const LaunchOptions& options, const TokenPlaces& places,
              const RopeAngles& angles, int64_t heads, const float* q,
              __nv_bfloat16* query) {
  Launch(MhaQueryKernel,
         {.grid = dim3(static_cast<unsigned>(places.tokens)), .threads = 256},
         options, "MhaQuery", places, angles, static_cast<int>(heads), q,
         query);
}

void MhaAttention(const LaunchOptions& options, const MhaSequences& sequences,
                  int64_t heads, float scale, float value_scale,
                  const GemmInput& query, const GemmInput& keys_values,
                  const GemmInput& rope_keys, const InputSink& out) {
  constexpr float kLog2E = 0x1.715476p+0f;
  if (sequences.count == 0) return;
  const Arguments a = {.heads = static_cast<int>(heads),
                       .scale_log2 = scale * kLog2E,
                       .value_scale = value_scale,
                       .out = out};
  Launch(MhaAttentionKernel,
         {.grid = dim3(static_cast<unsigned>(sequences.tiles),
                       static_cast<unsigned>(heads)),
          .threads = kThreads,
          .shared_bytes = kSharedBytes},
         options, "MhaAttention", query.wide_map, keys_values.wide_map,
         rope_keys.wide_map, sequences, a);
}

}  // namespace invar::cuda
