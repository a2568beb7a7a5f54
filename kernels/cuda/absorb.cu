// kv_b_proj in absorbed form: a small product a head on either side of the
// attention. Weights go from memory straight to operands in registers, FP8
// codes exactly to fp16; the tensor's scale is applied in fp32 at the end.
//
// A block has 16 tokens of one head and 64 of the outputs, 16 a warp. K is one
// chain of steps, ascending.
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/silu_mul.h"

namespace invar::cuda {
namespace {

constexpr int kTokens = 16;
constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kBlockRows = 16 * kWarps;

// A row of x or out: token t, head h begins at (t * heads + h) * stride.
struct Rows {
  const float* x;
  int x_stride;
  InputSink out;
  int out_stride;
};

// out[t, h, 0:kRows] = scale W_h x[t, h, 0:kColumns]. W (H, kRows, kColumns).
// grid (kRows / 64, H, tokens / 16)
template <typename Code, int kRows, int kColumns>
__device__ void HeadProduct(const HeadProjection& w, int64_t tokens,
                            const Rows& rows) {
  using Operand = typename Code::Operand;
  constexpr int kChunkSteps = 4 / Code::kBytes;
  constexpr int kChunks = kColumns * Code::kBytes / 64;
  __shared__ uint4 operands[kColumns / 16][32];
  __shared__ float factors[kTokens];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int64_t h = blockIdx.y;
  const int64_t first_token = int64_t{blockIdx.z} * kTokens;
  const int first_row = blockIdx.x * kBlockRows + warp * 16;
  const std::byte* weights =
      w.data + ((h * kRows + first_row + lane / 4) * kColumns) * Code::kBytes +
      16 * (lane % 4);
  // Weights are constant: the first chunks come while the kernel ahead ends.
  constexpr int kAhead = kChunks < 8 ? kChunks : 8;
  static_assert(kChunks % kAhead == 0);
  uint4 codes[kAhead][2];
  const auto load = [&](int first) {
#pragma unroll
    for (int c = 0; c < kAhead; ++c) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        codes[c][n] = __ldg(reinterpret_cast<const uint4*>(
            weights + 8 * n * kColumns * Code::kBytes + 64 * (first + c)));
      }
    }
  };
  AllowNextKernel();
  load(0);
  WaitForPriorKernel();
  for (int i = warp; i < kTokens; i += kWarps) {
    const int64_t t = first_token + i;
    const float row_scale = PackRow<Code, kColumns>(
        t < tokens ? rows.x + (t * w.heads + h) * rows.x_stride : nullptr,
        w.input_scales == nullptr ? nullptr : w.input_scales + h * kColumns, i,
        operands);
    if (lane == 0) factors[i] = w.scale / row_scale;
  }
  __syncthreads();
  float sums[2][4] = {};
#pragma unroll
  for (int first = 0; first < kChunks; first += kAhead) {
    if (first > 0) load(first);
#pragma unroll
    for (int c = 0; c < kAhead; ++c) {
#pragma unroll
      for (int j = 0; j < kChunkSteps; ++j) {
        const uint4 x = operands[(first + c) * kChunkSteps + j][lane];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const uint2 b = RightOperand<Code>(codes[c][n], j);
          Mma<Operand>(sums[n], x, b.x, b.y);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = lane / 4 + i / 2 * 8;
    const int64_t t = first_token + token;
    if (t >= tokens) continue;
    const int row = first_row + lane % 4 * 2 + i % 2;
    const int64_t out = (t * w.heads + h) * rows.out_stride + row;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      float sum = sums[n][i] * factors[token];
      if (w.row_scales != nullptr) sum *= w.row_scales[h * kRows + row + 8 * n];
      StoreInput(rows.out, out + 8 * n, sum);
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

template <typename Code>
__global__ void __launch_bounds__(kThreads)
    AbsorbQueryKernel(HeadProjection k, TokenPlaces places, RopeAngles angles,
                      const float* q, float* query) {
  constexpr int kWidth = kNope + kRope;
  HeadProduct<Code, kLatent, kNope>(
      k, places.tokens, {q, kWidth, {query, WeightDtype::kFp32}, kRow});
  if (blockIdx.x != 0) return;
  RotateQuery(k.heads, blockIdx.y, int64_t{blockIdx.z} * kTokens, kTokens,
              places, angles, q, query);
}

template <typename Code>
__global__ void __launch_bounds__(kThreads)
    AbsorbValueKernel(HeadProjection v, int64_t tokens, const float* attended,
                      InputSink out) {
  HeadProduct<Code, kValue, kLatent>(v, tokens,
                                     {attended, kLatent, out, kValue});
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
// Values, and queries that PromptAttention reads, are prompt_absorb.cu's.
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

template <typename Body>
void DispatchHead(WeightDtype dtype, Body body) {
  switch (dtype) {
    case WeightDtype::kFp8E4m3:
      return body.template operator()<E4m3>();
    case WeightDtype::kFp16:
      return body.template operator()<Fp16>();
    case WeightDtype::kBf16:
      return body.template operator()<Bf16>();
    case WeightDtype::kFp32:
      return;  // the loader refuses it
  }
}

LaunchShape Shape(int rows, int64_t heads, int64_t tokens) {
  return {.grid = dim3(static_cast<unsigned>(rows / kBlockRows),
                       static_cast<unsigned>(heads),
                       static_cast<unsigned>((tokens + kTokens - 1) / kTokens)),
          .threads = kThreads};
}

}  // namespace

void AbsorbQuery(const LaunchOptions& options, const HeadProjection& k,
                 const TokenPlaces& places, const RopeAngles& angles,
                 const float* q, float* query) {
  DispatchHead(k.dtype, [&]<typename Code>() {
    if (places.tokens >= kManyTokens) {
      return Launch(ManyAbsorbQueryKernel<Code>,
                    ManyShape<kNope>(k.heads, places.tokens), options,
                    "AbsorbQuery", k, places, angles, q, query);
    }
    Launch(AbsorbQueryKernel<Code>, Shape(kLatent, k.heads, places.tokens),
           options, "AbsorbQuery", k, places, angles, q, query);
  });
}

void AbsorbValue(const LaunchOptions& options, const HeadProjection& v,
                 int64_t tokens, const float* attended, float* out) {
  AbsorbValue(options, v, tokens, attended,
              InputSink{.data = out, .dtype = WeightDtype::kFp32});
}

void AbsorbValue(const LaunchOptions& options, const HeadProjection& v,
                 int64_t tokens, const float* attended, const InputSink& out) {
  DispatchHead(v.dtype, [&]<typename Code>() {
    if (tokens >= kManyTokens) {
      return PromptAbsorbValue(options, v, tokens, attended, out);
    }
    Launch(AbsorbValueKernel<Code>, Shape(kValue, v.heads, tokens), options,
           "AbsorbValue", v, tokens, attended, out);
  });
}

}  // namespace invar::cuda
