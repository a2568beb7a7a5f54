// The experts' products, and dense gate and up, with many tokens.
//
// What such a product ends with costs as much as a third of its arithmetic, so
// each scale is read once, and the tile leaves through shared memory in runs.
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/silu_mul.h"
#include "kernels/cuda/wide_store.cuh"

namespace invar::cuda {
namespace {

// Gate and up, or two neighbouring row blocks of down, by 128 tokens.
using TileType = WideTile<kWideExpertTile, 2, 4>;
constexpr int kTokens = TileType::kTokens;
constexpr int kValues = TileType::kValues;

// Which tokens this block multiplies; count below 1: none.
__device__ ExpertWork FindWork(const ExpertArguments& a) {
  const int item = blockIdx.y;
  if (a.work == nullptr) {
    return {0, item * kTokens, min(kTokens, a.tokens - item * kTokens), 0};
  }
  WaitForPriorKernel();
  if (item >= *a.work_count) return {0, 0, 0, 0};
  return a.work[item];
}

// What the tile's end reads of its tokens.
struct Ends {
  float scale[kTokens];
  int64_t row[kTokens];  // of the output
};

template <bool kGateUp>
__device__ void FindEnds(const ExpertArguments& a, const ExpertWork& work,
                         Ends& ends) {
  for (int t = threadIdx.x; t < kTokens; t += blockDim.x) {
    if (t >= work.count) {
      ends.scale[t] = 0.0f;
      continue;
    }
    const int place = work.first + t;
    ends.row[t] = kGateUp ? place : a.order[place];
    ends.scale[t] = a.token_scales == nullptr ? 1.0f : a.token_scales[place];
  }
}

// x / divisor, rounded to nearest, where that is in the range of e4m3: what is
// smaller or larger goes the same way. inverse is the nearest of 1 / divisor.
__device__ float Divide(float x, float divisor, float inverse) {
  const float nearly = x * inverse;
  float quotient = fmaf(fmaf(-divisor, nearly, x), inverse, nearly);
  quotient = fmaf(fmaf(-divisor, quotient, x), inverse, quotient);
  return nearly != 0.0f && fabsf(nearly) < 0x1p100f ? quotient : nearly;
}

// StoreInput's roundings, as those of wide_store.cuh.
struct ToE4m3 {
  using Element = __nv_fp8_storage_t;
  float scale;
  float inverse;
  __device__ Element operator()(float x) const {
    return __nv_cvt_float_to_fp8(Divide(x, scale, inverse), __NV_SATFINITE,
                                 __NV_E4M3);
  }
};
// Both row blocks' sums, times their scales, in place; of gate and up the first
// becomes their SwiGLU.
template <bool kGateUp>
__device__ void FinishSums(const ExpertArguments& a, const ExpertWork& work,
                           int first_row, const Ends& ends,
                           float (&sum)[2][kValues]) {
  const int thread = threadIdx.x % 128;
  float factor[2][2];  // of row block m, and of its rows g and g + 8
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const bool up = kGateUp && m == 1;
    const float* scales = up ? a.up_scales : a.scales;
    const float own = up ? a.up_scale : a.scale;
    const float scale = scales == nullptr ? own : own * scales[work.expert];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = min(first_row + FragmentRow(thread, 2 * h) +
                              (kGateUp ? 0 : m * kProductRows),
                          a.rows - 1);
      const int64_t at =
          static_cast<int64_t>(work.expert) * a.rows * (kGateUp ? 2 : 1) +
          (up ? a.rows : 0) + row;
      factor[m][h] =
          scale * (a.row_scales == nullptr ? 1.0f : a.row_scales[at]);
    }
  }
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const float token_scale = ends.scale[FragmentToken(thread, i)];
    const int h = i / 2 % 2;
    const float first = sum[0][i] * (factor[0][h] * token_scale);
    const float second = sum[1][i] * (factor[1][h] * token_scale);
    sum[0][i] = kGateUp ? SwiGlu(first, second) : first;
    sum[1][i] = second;
  }
}

template <bool kGateUp>
__device__ void StoreSums(const ExpertArguments& a, const ExpertWork& work,
                          int first_row, const Ends& ends, std::byte* staging,
                          float (&sum)[2][kValues]) {
  FinishSums<kGateUp>(a, work, first_row, ends, sum);
  const auto store = [&]<typename Convert>(const Convert& convert, void* out) {
    StoreTile<kGateUp ? 1 : 2>(
        convert, [&](int token) { return ends.row[token]; }, work.count, a.rows,
        first_row, staging, static_cast<typename Convert::Element*>(out), sum);
  };
  if constexpr (!kGateUp) {
    store(ToFp32(), a.slots);
  } else {
    const InputSink& sink = a.activated;
    switch (sink.dtype) {
      case WeightDtype::kFp8E4m3:
        return store(ToE4m3{sink.scale, 1.0f / sink.scale}, sink.data);
      case WeightDtype::kFp16:
        return store(ToFp16(), sink.data);
      case WeightDtype::kBf16:
        return store(ToBf16(), sink.data);
      case WeightDtype::kFp32:
        return store(ToFp32(), sink.data);
    }
  }
}

// grid (row tiles, entries of the work)
template <typename Format, bool kGateUp>
__global__ void __launch_bounds__(TileType::kThreads, 1)
    WideExpertKernel(const __grid_constant__ CUtensorMap weights,
                     const __grid_constant__ CUtensorMap x,
                     const __grid_constant__ ExpertArguments a) {
  // Rows of the output that a group makes.
  constexpr int kGroupRows = (kGateUp ? 1 : 2) * kProductRows;
  extern __shared__ std::byte shared[];
  __shared__ Ends ends;
  AllowNextKernel();
  const ExpertWork work = FindWork(a);
  if (work.count <= 0) return;
  const WideRing<TileType> ring(shared, /*paired=*/false);
  if (threadIdx.x == 0) WideRing<TileType>(ring).Init();
  const int row = blockIdx.x * (TileType::kGroups * kGroupRows);
  const int group = threadIdx.x / 128;
  WaitForPriorKernel();
  FindEnds<kGateUp>(a, work, ends);
  __syncthreads();
  if (group == TileType::kGroups) {
    ReduceRegisters<TileType::kProducerRegisters>();
    if (threadIdx.x % 128 < 32) {
      const int first = work.expert * a.rows * (kGateUp ? 2 : 1) + row;
      ProduceWide<TileType>(
          ring, /*rank=*/0, &weights,
          [&](int i) {
            return first + (kGateUp ? i / 2 * kProductRows + i % 2 * a.rows
                                    : i * kProductRows);
          },
          &x, work.first, a.k_blocks);
    }
    return;
  }
  RaiseRegisters<TileType::kMultiplierRegisters>();
  float sum[2][kValues];
  MultiplyChain<Format, TileType>(ring, group, a.k_blocks, sum);
  BarrierSync(kMultipliersBarrier, TileType::kMultipliers);
  std::byte* const staging = ring.stages + group * (2 * TileType::kStageBytes);
  StoreSums<kGateUp>(a, work, row + group * kGroupRows, ends, staging, sum);
}

template <typename Format, bool kGateUp>
void Run(const CUtensorMap& weights, const CUtensorMap& x,
         const ExpertArguments& a, int64_t items,
         const LaunchOptions& options) {
  constexpr int kRows = TileType::kRowBlocks * kProductRows / (kGateUp ? 2 : 1);
  const LaunchShape shape = {
      .grid = dim3((a.rows + kRows - 1) / kRows, static_cast<unsigned>(items)),
      .threads = TileType::kThreads,
      .shared_bytes = Ring<TileType, TileType::kStages>::kSharedBytes};
  Launch(WideExpertKernel<Format, kGateUp>, shape, options,
         kGateUp ? "ExpertsGateUp" : "ExpertsDown", weights, x, a);
}

template <typename Format>
void RunFormat(bool gate_up, const CUtensorMap& weights, const CUtensorMap& x,
               const ExpertArguments& a, int64_t items,
               const LaunchOptions& options) {
  return gate_up ? Run<Format, true>(weights, x, a, items, options)
                 : Run<Format, false>(weights, x, a, items, options);
}

}  // namespace

bool WideExpertsTake(WeightDtype dtype, const ExpertArguments& a,
                     bool gate_up) {
  // Rows leave in pieces of 16 bytes.
  return a.block_scales == nullptr && a.rows % 16 == 0 &&
         (!gate_up || a.work == nullptr || a.gathered) &&
         (dtype == WeightDtype::kFp8E4m3 || dtype == WeightDtype::kFp16 ||
          dtype == WeightDtype::kBf16);
}

void WideExperts(WeightDtype dtype, bool gate_up, const CUtensorMap& weights,
                 const CUtensorMap& x, const ExpertArguments& a, int64_t items,
                 const LaunchOptions& options) {
  switch (dtype) {
    case WeightDtype::kFp8E4m3:
      return RunFormat<E4m3Format>(gate_up, weights, x, a, items, options);
    case WeightDtype::kFp16:
      return RunFormat<Fp16Format>(gate_up, weights, x, a, items, options);
    default:
      return RunFormat<Bf16Format>(gate_up, weights, x, a, items, options);
  }
}

}  // namespace invar::cuda
