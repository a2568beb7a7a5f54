// kv_b_proj in absorbed form: a small product a head on either side of the
// attention. Weights go from memory straight to operands in registers, FP8
// codes exactly to fp16; the tensor's scale is applied in fp32 at the end.
//
// A block has 16 tokens of one head and 16 outputs a warp. K is one chain of
// steps, ascending.
#include "kernels/cuda/attention_merge.cuh"
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/head_dispatch.cuh"
#include "kernels/cuda/input_pair.cuh"
#include "kernels/cuda/kv_append.cuh"
#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/silu_mul.h"

namespace invar::cuda {
namespace {

constexpr int kTokens = 16;
// Few tokens leave multiprocessors idle, so outputs are spread over blocks of
// four warps; from kSomeTokens on a block of eight rounds its tokens once for
// all outputs. Free, since bits are the same.
constexpr int kSomeTokens = 65;
constexpr int kFewWarps = 4;
constexpr int kSomeWarps = 8;

// A row of x or out: token t, head h begins at (t * heads + h) * stride. Where
// there are parts, x is what they merge to.
struct Rows {
  const float* x;
  int x_stride;
  InputSink out;
  int out_stride;
  AttentionParts parts = {};
};

// out[t, h, 0:kRows] = scale W_h x[t, h, 0:kColumns]. W (H, kRows, kColumns).
// Outputs are walked 16 kWarps at a time, kPasses times.
// grid (kRows / (16 kWarps kPasses), H, tokens / 16)
template <typename Code, int kRows, int kColumns, int kWarps, int kPasses>
__device__ void HeadProduct(const HeadProjection& w, int64_t tokens,
                            const Rows& rows) {
  using Operand = typename Code::Operand;
  constexpr int kChunkSteps = 4 / Code::kBytes;
  constexpr int kChunks = kColumns * Code::kBytes / 64;
  constexpr int kPassRows = 16 * kWarps;
  constexpr int kMine = kTokens / kWarps;  // tokens that a warp rounds
  static_assert(kRows % (kPassRows * kPasses) == 0);
  __shared__ uint4 operands[kColumns / 16][32];
  __shared__ float factors[kTokens];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int64_t h = blockIdx.y;
  const int64_t first_token = int64_t{blockIdx.z} * kTokens;
  const int first_row = blockIdx.x * kPassRows * kPasses + warp * 16;
  const std::byte* weights =
      w.data + ((h * kRows + first_row + lane / 4) * kColumns) * Code::kBytes +
      16 * (lane % 4);
  // The chunks of all passes, a few of them ahead. Weights are constant: the
  // first come while the kernel before ends.
  constexpr int kUnits = kChunks * kPasses;
  constexpr int kAhead = kUnits < 8 ? kUnits : 8;
  static_assert(kUnits % kAhead == 0);
  uint4 codes[kAhead][2];
  const auto load = [&](int first) {
#pragma unroll
    for (int c = 0; c < kAhead; ++c) {
      const int row = (first + c) / kChunks * kPassRows;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        codes[c][n] = __ldg(reinterpret_cast<const uint4*>(
            weights + (row + 8 * n) * kColumns * Code::kBytes +
            64 * ((first + c) % kChunks)));
      }
    }
  };
  AllowNextKernel();
  load(0);
  WaitForPriorKernel();
  const auto pack = [&](WarpRow<kColumns>& x, int token) {
    const float row_scale = PackRow<Code, kColumns>(
        x, w.input_scales == nullptr ? nullptr : w.input_scales + h * kColumns,
        token, operands);
    if (lane == 0) factors[token] = w.scale / row_scale;
  };
  const auto token_of = [&](int i) { return warp + i * kWarps; };
  if (kColumns == kLatent && rows.parts.data != nullptr) {
    // One at a time: merging needs the registers.
#pragma unroll 1
    for (int i = 0; i < kMine; ++i) {
      const int64_t t = first_token + token_of(i);
      WarpRow<kColumns> x;
      if constexpr (kColumns == kLatent) {
        if (t < tokens) MergeRow(rows.parts, t, static_cast<int>(h), x);
      }
      if (t >= tokens) LoadRow<kColumns>(nullptr, x);
      pack(x, token_of(i));
    }
  } else {
    WarpRow<kColumns> x[kMine];
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int64_t t = first_token + token_of(i);
      LoadRow<kColumns>(
          t < tokens ? rows.x + (t * w.heads + h) * rows.x_stride : nullptr,
          x[i]);
    }
#pragma unroll
    for (int i = 0; i < kMine; ++i) pack(x[i], token_of(i));
  }
  __syncthreads();
  float sums[2][4] = {};
#pragma unroll
  for (int unit = 0; unit < kUnits; ++unit) {
    if (unit > 0 && unit % kAhead == 0) load(unit);
#pragma unroll
    for (int j = 0; j < kChunkSteps; ++j) {
      const uint4 operand = operands[unit % kChunks * kChunkSteps + j][lane];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const uint2 b = RightOperand<Code>(codes[unit % kAhead][n], j);
        Mma<Operand>(sums[n], operand, b.x, b.y);
      }
    }
    if (unit % kChunks != kChunks - 1) continue;
    const int row = first_row + unit / kChunks * kPassRows + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = lane / 4 + half * 8;
      const int64_t t = first_token + token;
      const float factor = factors[token];
      const int64_t out = (t * w.heads + h) * rows.out_stride + row;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float first = sums[n][2 * half] * factor;
        float second = sums[n][2 * half + 1] * factor;
        sums[n][2 * half] = sums[n][2 * half + 1] = 0.0f;
        if (t >= tokens) continue;
        if (w.row_scales != nullptr) {
          first *= w.row_scales[h * kRows + row + 8 * n];
          second *= w.row_scales[h * kRows + row + 8 * n + 1];
        }
        StoreInputPair(rows.out, out + 8 * n, first, second);
      }
    }
  }
}

// The rope half of the queries of `count` tokens, by all threads of the block:
// (a, b) -> (a cos - b sin, a sin + b cos).
__device__ void RotateQuery(int64_t heads, int64_t head, int64_t first_token,
                            int count, const TokenPlaces& places,
                            const RopeAngles& angles, const float* q,
                            float* query) {
  for (int i = threadIdx.x; i < count * kRope / 2; i += blockDim.x) {
    const int pair = i % (kRope / 2);
    const int64_t t = first_token + i / (kRope / 2);
    if (t >= places.tokens) return;
    const int64_t angle = int64_t{places.positions[t]} * (kRope / 2) + pair;
    const float cosine = angles.cosines[angle];
    const float sine = angles.sines[angle];
    const int64_t row = t * heads + head;
    const float2 v = reinterpret_cast<const float2*>(q + row * (kNope + kRope) +
                                                     kNope)[pair];
    reinterpret_cast<float2*>(query + row * kRow + kLatent)[pair] = {
        v.x * cosine - v.y * sine, v.x * sine + v.y * cosine};
  }
}

// Blocks that share the cached rows of sixteen tokens.
constexpr int kAppendBlocks = 8;

// The cached rows of this block's share.
__device__ void AppendRows(int64_t heads, const TokenPlaces& places,
                           const RopeAngles& angles, const CacheRows& rows) {
  AllowNextKernel();
  if (threadIdx.x >= kAppendThreads) return;
  WaitForPriorKernel();
  const int block =
      (blockIdx.y - static_cast<int>(heads)) * gridDim.x + blockIdx.x;
#pragma unroll 1
  for (int i = 0; i < kTokens / kAppendBlocks; ++i) {
    const int64_t t = int64_t{blockIdx.z} * kTokens + i * kAppendBlocks + block;
    if (t >= places.tokens) return;
    if (i > 0) __syncthreads();
    switch (rows.cache.dtype) {
      case KvDtype::kFp8E5m2:
        AppendRow<E5m2>(places, rows, angles, t);
        break;
      case KvDtype::kFp8E4m3:
        AppendRow<E4m3>(places, rows, angles, t);
        break;
      default:
        AppendRow<Bf16>(places, rows, angles, t);
    }
  }
}

// Blocks past the heads append to the cache, where there are any.
template <typename Code, int kWarps, int kPasses>
__global__ void __launch_bounds__(32 * kWarps)
    AbsorbQueryKernel(HeadProjection k, TokenPlaces places, RopeAngles angles,
                      const float* q, float* query, CacheRows append) {
  constexpr int kWidth = kNope + kRope;
  static_assert(32 * kWarps >= kAppendThreads);
  if (blockIdx.y >= k.heads) return AppendRows(k.heads, places, angles, append);
  HeadProduct<Code, kLatent, kNope, kWarps, kPasses>(
      k, places.tokens, {q, kWidth, {query, WeightDtype::kFp32}, kRow});
  if (blockIdx.x != 0) return;
  RotateQuery(k.heads, blockIdx.y, int64_t{blockIdx.z} * kTokens, kTokens,
              places, angles, q, query);
}

template <typename Code, int kWarps, int kPasses>
__global__ void __launch_bounds__(32 * kWarps)
    AbsorbValueKernel(HeadProjection v, int64_t tokens, const float* attended,
                      InputSink out, AttentionParts parts) {
  HeadProduct<Code, kValue, kLatent, kWarps, kPasses>(
      v, tokens, {attended, kLatent, out, kValue, parts});
}

// ---- Many tokens
// -------------------------------------------------------------

// A block has 64 tokens of one head, rounds them once and walks all outputs,
// 128 at a time, 16 a warp: weights are read once for four groups of tokens.
constexpr int kManyTokens = 512;  // from here on; free, since bits are the same
constexpr int kManyGroups = 4;
constexpr int kManyWarps = 8;
constexpr int kManyThreads = 32 * kManyWarps;
constexpr int kManyBlockTokens = kManyGroups * kTokens;

template <int kColumns>
struct ManyShared {
  uint4 operands[kManyGroups][kColumns / 16][32];
  float factors[kManyBlockTokens];
};

// HeadProduct of the block's tokens, all rows, in fp32: grid (H, tokens / 64).
// Values, and queries that PromptAttention reads, are prompt_absorb_query.cu's
// and prompt_absorb_value.cu's.
template <typename Code, int kRows, int kColumns>
__device__ void ManyHeadProduct(const HeadProjection& w, int64_t tokens,
                                const Rows& rows) {
  using Operand = typename Code::Operand;
  constexpr int kChunkSteps = 4 / Code::kBytes;
  constexpr int kChunks = kColumns * Code::kBytes / 64;
  constexpr int kPassRows = 16 * kManyWarps;
  extern __shared__ std::byte memory[];
  auto& shared = *reinterpret_cast<ManyShared<kColumns>*>(memory);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int64_t h = blockIdx.x;
  const int64_t first_token = int64_t{blockIdx.y} * kManyBlockTokens;
  AllowNextKernel();
  WaitForPriorKernel();
#pragma unroll 2
  for (int i = warp; i < kManyBlockTokens; i += kManyWarps) {
    const int64_t t = first_token + i;
    const float row_scale = PackRow<Code, kColumns>(
        t < tokens ? rows.x + (t * w.heads + h) * rows.x_stride : nullptr,
        w.input_scales == nullptr ? nullptr : w.input_scales + h * kColumns,
        i % kTokens, shared.operands[i / kTokens]);
    if (lane == 0) shared.factors[i] = w.scale / row_scale;
  }
  __syncthreads();
#pragma unroll 1
  for (int pass = 0; pass < kRows / kPassRows; ++pass) {
    const int first_row = pass * kPassRows + warp * 16;
    const std::byte* weights =
        w.data +
        ((h * kRows + first_row + lane / 4) * kColumns) * Code::kBytes +
        16 * (lane % 4);
    float sums[kManyGroups][2][4] = {};
#pragma unroll 4
    for (int c = 0; c < kChunks; ++c) {
      uint4 codes[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        codes[n] = *reinterpret_cast<const uint4*>(
            weights + 8 * n * kColumns * Code::kBytes + 64 * c);
      }
#pragma unroll
      for (int j = 0; j < kChunkSteps; ++j) {
        uint2 b[2];
#pragma unroll
        for (int n = 0; n < 2; ++n) b[n] = RightOperand<Code>(codes[n], j);
#pragma unroll
        for (int g = 0; g < kManyGroups; ++g) {
          const uint4 x = shared.operands[g][c * kChunkSteps + j][lane];
#pragma unroll
          for (int n = 0; n < 2; ++n)
            Mma<Operand>(sums[g][n], x, b[n].x, b[n].y);
        }
      }
    }
    const int row = first_row + lane % 4 * 2;
#pragma unroll
    for (int g = 0; g < kManyGroups; ++g) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int token = g * kTokens + lane / 4 + half * 8;
        const int64_t t = first_token + token;
        if (t >= tokens) continue;
        const float factor = shared.factors[token];
        const int64_t out = (t * w.heads + h) * rows.out_stride + row;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          float x = sums[g][n][2 * half] * factor;
          float y = sums[g][n][2 * half + 1] * factor;
          if (w.row_scales != nullptr) {
            x *= w.row_scales[h * kRows + row + 8 * n];
            y *= w.row_scales[h * kRows + row + 8 * n + 1];
          }
          *reinterpret_cast<float2*>(static_cast<float*>(rows.out.data) + out +
                                     8 * n) = {x, y};
        }
      }
    }
  }
}

template <typename Code>
__global__ void __launch_bounds__(kManyThreads, 2)
    ManyAbsorbQueryKernel(HeadProjection k, TokenPlaces places,
                          RopeAngles angles, const float* q, float* query) {
  ManyHeadProduct<Code, kLatent, kNope>(
      k, places.tokens, {q, kNope + kRope, {query, WeightDtype::kFp32}, kRow});
  RotateQuery(k.heads, blockIdx.x, int64_t{blockIdx.y} * kManyBlockTokens,
              kManyBlockTokens, places, angles, q, query);
}

template <int kColumns>
LaunchShape ManyShape(int64_t heads, int64_t tokens) {
  return {.grid = dim3(static_cast<unsigned>(heads),
                       static_cast<unsigned>((tokens + kManyBlockTokens - 1) /
                                             kManyBlockTokens)),
          .threads = kManyThreads,
          .shared_bytes = static_cast<int>(sizeof(ManyShared<kColumns>))};
}

LaunchShape Shape(int row_blocks, int64_t heads, int64_t tokens, int warps) {
  return {.grid = dim3(static_cast<unsigned>(row_blocks),
                       static_cast<unsigned>(heads),
                       static_cast<unsigned>((tokens + kTokens - 1) / kTokens)),
          .threads = 32 * warps};
}

// With `append` also the cached rows.
template <typename Code, int kWarps, int kPasses>
void RunQuery(const LaunchOptions& options, const HeadProjection& k,
              const TokenPlaces& places, const RopeAngles& angles,
              const float* q, float* query, const CacheRows* append) {
  constexpr int kRowBlocks = kLatent / (16 * kWarps * kPasses);
  static_assert(kAppendBlocks % kRowBlocks == 0);
  const int64_t slices =
      k.heads + (append == nullptr ? 0 : kAppendBlocks / kRowBlocks);
  Launch(AbsorbQueryKernel<Code, kWarps, kPasses>,
         Shape(kRowBlocks, slices, places.tokens, kWarps), options,
         "AbsorbQuery", k, places, angles, q, query,
         append == nullptr ? CacheRows() : *append);
}

void RunQuery(const LaunchOptions& options, const HeadProjection& k,
              const TokenPlaces& places, const RopeAngles& angles,
              const float* q, float* query, const CacheRows* append) {
  DispatchHead(k.dtype, [&]<typename Code>() {
    constexpr int kAllRows = kLatent / (16 * kSomeWarps);
    const auto run = places.tokens < kSomeTokens
                         ? RunQuery<Code, kFewWarps, 1>
                         : RunQuery<Code, kSomeWarps, kAllRows>;
    run(options, k, places, angles, q, query, append);
  });
}

}  // namespace

void AbsorbQuery(const LaunchOptions& options, const HeadProjection& k,
                 const TokenPlaces& places, const RopeAngles& angles,
                 const float* q, float* query) {
  if (places.tokens < kManyTokens) {
    return RunQuery(options, k, places, angles, q, query, nullptr);
  }
  DispatchHead(k.dtype, [&]<typename Code>() {
    Launch(ManyAbsorbQueryKernel<Code>,
           ManyShape<kNope>(k.heads, places.tokens), options, "AbsorbQuery", k,
           places, angles, q, query);
  });
}

void AbsorbQueryAndAppend(const LaunchOptions& options, const HeadProjection& k,
                          const TokenPlaces& places, const RopeAngles& angles,
                          const float* q, float* query, const CacheRows& rows) {
  if (places.tokens < kManyTokens) {
    return RunQuery(options, k, places, angles, q, query, &rows);
  }
  KvAppend(options, places, rows, angles);
  AbsorbQuery(options, k, places, angles, q, query);
}

void AbsorbValue(const LaunchOptions& options, const HeadProjection& v,
                 int64_t tokens, const float* attended, float* out) {
  AbsorbValue(options, v, tokens, attended,
              InputSink{.data = out, .dtype = WeightDtype::kFp32});
}

void AbsorbValue(const LaunchOptions& options, const HeadProjection& v,
                 int64_t tokens, const float* attended, const InputSink& out,
                 const AttentionParts& parts) {
  DispatchHead(v.dtype, [&]<typename Code>() {
    const auto run = [&]<int kWarps>() {
      constexpr int kRowBlocks = kValue / (16 * kWarps);
      Launch(AbsorbValueKernel<Code, kWarps, 1>,
             Shape(kRowBlocks, v.heads, tokens, kWarps), options, "AbsorbValue",
             v, tokens, attended, out, parts);
    };
    tokens < kSomeTokens ? run.template operator()<kFewWarps>()
                         : run.template operator()<kSomeWarps>();
  });
}

}  // namespace invar::cuda
