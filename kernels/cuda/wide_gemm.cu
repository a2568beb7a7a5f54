#include <algorithm>

#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/wide_gemm.h"
#include "kernels/cuda/wide_store.cuh"

namespace invar::cuda {
namespace {

// Whether sums of two leaves wait in registers, as those of one leaf do: what
// is promoted has a second set of sums as it is.
template <typename Format>
inline constexpr bool kHoldsPairs = !kPromoted<Format>;
template <typename Format>
using TileType = WideTile<128, 1, kHoldsPairs<Format> ? 5 : 3>;
constexpr int kTokens = 128;
constexpr int kValues = kTokens / 2;
constexpr int kGroups = TileType<Bf16Format>::kGroups;
constexpr int kThreads = TileType<Bf16Format>::kThreads;
constexpr int kRows = kGroups * kProductRows;

struct Arguments {
  int rows;
  int tokens;
  int k_blocks;     // stages of 128 bytes that K takes
  int leaf_blocks;  // of one leaf
  int leaves;
  float scale;
  const float* row_scales;    // (rows), or null
  const float* token_scales;  // (tokens), or null
  void* out;
  GemmOutput type;
};

// Sums that wait for others in shared memory: each thread's in a column of its
// own, of two leaves, where registers have no room for these, and of four.
constexpr int kPair = 0;
template <typename Format>
constexpr int kQuad = kHoldsPairs<Format> ? 0 : 1;
template <typename Format>
struct Waiting {
  float4 sums[kQuad<Format> + 1][kValues / 4][128];

  __device__ void Put(int place, const float (&sum)[kValues]) {
#pragma unroll
    for (int i = 0; i < kValues; i += 4) {
      sums[place][i / 4][threadIdx.x % 128] = {sum[i], sum[i + 1], sum[i + 2],
                                               sum[i + 3]};
    }
  }
  __device__ void AddTo(int place, float (&sum)[kValues]) const {
#pragma unroll
    for (int i = 0; i < kValues; i += 4) {
      const float4 add = sums[place][i / 4][threadIdx.x % 128];
      sum[i] += add.x;
      sum[i + 1] += add.y;
      sum[i + 2] += add.z;
      sum[i + 3] += add.w;
    }
  }
};
template <typename Format>
inline constexpr int kSharedBytes =
    Ring<TileType<Format>, TileType<Format>::kStages>::kSharedBytes +
    kGroups* static_cast<int>(sizeof(Waiting<Format>));
static_assert(kSharedBytes<E4m3Format> <= 227 * 1024 &&
              kSharedBytes<Bf16Format> <= 227 * 1024);

// sum = the products of the next `blocks` stages, one leaf.
template <typename Format>
__device__ void MultiplyLeaf(const WideRing<TileType<Format>>& ring,
                             Walk<TileType<Format>::kStages>& walk, int group,
                             int blocks, float (&sum)[kValues]) {
  constexpr int kSteps = kTileRowBytes / kProductBytes;
  constexpr int kStep = kProductBytes / 16;  // descriptors count in 16 bytes
  const bool leader = threadIdx.x % 32 == 0;
  // Also where the first product forgets it: so no move of what the registers
  // held comes between products, for which these would wait.
#pragma unroll
  for (int i = 0; i < kValues; ++i) sum[i] = 0.0f;
  int previous = -1;
  for (int b = 0; b < blocks; ++b) {
    BarrierWait(&ring.full[walk.stage], walk.phase);
    const uint64_t weights =
        TileDescriptor(SharedAddress(ring.weights(walk.stage)) +
                       group * TileType<Format>::kBlockBytes);
    const uint64_t inputs =
        TileDescriptor(SharedAddress(ring.inputs(walk.stage)));
    if constexpr (kPromoted<Format>) {
      float part[kValues];
      MultiplyInTurn<Format, kTokens>(group, weights, inputs, part);
      if (leader) ring.Release(walk.stage);
#pragma unroll
      for (int i = 0; i < kValues; ++i) sum[i] += part[i];
    } else {
      ProductFence();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        Product<Format, kTokens>::Run(sum, weights + k * kStep,
                                      inputs + k * kStep, b != 0 || k != 0);
      }
      ProductCommit();
      ProductWait<1>();
      if (leader && previous >= 0) ring.Release(previous);
      previous = walk.stage;
    }
    walk.Advance();
  }
  if constexpr (!kPromoted<Format>) {
    ProductWait<0>();
    if (leader) ring.Release(previous);
  }
}

// sum = the tile's products, its leaves folded as the tree of kernels/types.h,
// of which absent places are skipped.
static_assert(kMaxLeaves == 8);
template <typename Format>
__device__ void MultiplyLeaves(const WideRing<TileType<Format>>& ring,
                               Walk<TileType<Format>::kStages>& walk,
                               const Arguments& a, int group,
                               Waiting<Format>& waiting,
                               float (&sum)[kValues]) {
  int left = a.k_blocks;
  const auto multiply = [&] {
    const int blocks = min(a.leaf_blocks, left);
    left -= blocks;
    MultiplyLeaf<Format>(ring, walk, group, blocks, sum);
  };
  // A leaf and its neighbour.
  const auto multiply_two = [&] {
    multiply();
    if (left == 0) return;
    float first[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) first[i] = sum[i];
    multiply();
#pragma unroll
    for (int i = 0; i < kValues; ++i) sum[i] += first[i];
  };
  for (int quad = 0;; ++quad) {
    multiply_two();
    if (left > 0) {
      if constexpr (kHoldsPairs<Format>) {
        float pair[kValues];
#pragma unroll
        for (int i = 0; i < kValues; ++i) pair[i] = sum[i];
        multiply_two();
#pragma unroll
        for (int i = 0; i < kValues; ++i) sum[i] += pair[i];
      } else {
        waiting.Put(kPair, sum);
        multiply_two();
        waiting.AddTo(kPair, sum);
      }
    }
    if (quad > 0) waiting.AddTo(kQuad<Format>, sum);
    if (left == 0) return;
    waiting.Put(kQuad<Format>, sum);
  }
}

// What the group's sums become: StoreOutput of gemm.cu.
__device__ void StoreOutput(const Arguments& a, int first_row, int token,
                            std::byte* staging, float (&sum)[kValues]) {
  const int thread = threadIdx.x % 128;
  const int count = min(kTokens, a.tokens - token);
  float scale[2];  // of rows g and g + 8
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = min(first_row + FragmentRow(thread, 2 * h), a.rows - 1);
    scale[h] = a.row_scales == nullptr ? a.scale : a.scale * a.row_scales[row];
  }
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    float factor = scale[i / 2 % 2];
    if (a.token_scales != nullptr) {
      factor *=
          a.token_scales[min(token + FragmentToken(thread, i), a.tokens - 1)];
    }
    sum[i] *= factor;
  }
  const auto row_of = [&](int t) { return static_cast<int64_t>(token + t); };
  if (a.type == GemmOutput::kFp32) {
    StoreBlock(ToFp32(), row_of, count, a.rows, first_row, staging,
               static_cast<float*>(a.out), sum);
  } else {
    StoreBlock(ToBf16(), row_of, count, a.rows, first_row, staging,
               static_cast<__nv_bfloat16*>(a.out), sum);
  }
}

// A pair of blocks, with neighbouring tokens, takes every pair of tiles that is
// gridDim.x / 2 after the last; tokens first, so that a row tile's weights are
// read once. Past the last token a block multiplies zeros for its neighbour's
// sake.
template <typename Format>
__global__ void __launch_bounds__(kThreads, 1)
    WideGemmKernel(const __grid_constant__ CUtensorMap weights,
                   const __grid_constant__ CUtensorMap x, const Arguments a) {
  extern __shared__ std::byte shared[];
  AllowNextKernel();
  const int rank = blockIdx.x % 2;
  const WideRing<TileType<Format>> ring(shared);
  if (threadIdx.x == 0) {
    PrefetchMap(&weights);
    PrefetchMap(&x);
    WideRing<TileType<Format>>(ring).Init();
  }
  ClusterSync();
  WaitForPriorKernel();
  const int pairs = (a.tokens + 2 * kTokens - 1) / (2 * kTokens);
  const int count = pairs * ((a.rows + kRows - 1) / kRows);
  const auto token_of = [&](int pair) {
    return (2 * (pair % pairs) + rank) * kTokens;
  };
  const int first = blockIdx.x / 2;
  const int step = gridDim.x / 2;
  const int group = threadIdx.x / 128;
  Walk<TileType<Format>::kStages> walk;
  if (group == kGroups) {
    ReduceRegisters<TileType<Format>::kProducerRegisters>();
    if (threadIdx.x % 128 < 32) {
      for (int pair = first; pair < count; pair += step) {
        const int row = pair / pairs * kRows;
        ProduceWide<TileType<Format>>(
            ring, walk, rank, /*common=*/true, &weights,
            [&](int i) { return row + i * kProductRows; }, &x, token_of(pair),
            a.k_blocks);
      }
    }
  } else {
    RaiseRegisters<TileType<Format>::kMultiplierRegisters>();
    if constexpr (kPromoted<Format>) BeginTurns(group);
    std::byte* const after =
        ring.stages +
        TileType<Format>::kStages * TileType<Format>::kStageBytes +
        group * static_cast<int>(sizeof(Waiting<Format>));
    for (int pair = first; pair < count; pair += step) {
      float sum[kValues];
      MultiplyLeaves<Format>(ring, walk, a, group,
                             *reinterpret_cast<Waiting<Format>*>(after), sum);
      StoreOutput(a, pair / pairs * kRows + group * kProductRows,
                  token_of(pair), after, sum);
      // Sums wait where it has been stored from.
      BarrierSync(kGroupBarrier + group, 128);
    }
  }
  ClusterArrive();
  ClusterWait();  // no block leaves while it is being told
}

template <typename Format>
void Run(const GemmWeight& weight, const GemmInput& x, const Arguments& a,
         const LaunchOptions& options) {
  static_assert(kStagingBytes<float> <= sizeof(Waiting<Format>) &&
                kStagingBytes<__nv_bfloat16> <= sizeof(Waiting<Format>));
  const int pairs = (a.tokens + 2 * kTokens - 1) / (2 * kTokens);
  const int tiles = pairs * ((a.rows + kRows - 1) / kRows);
  const LaunchShape shape = {
      .grid = dim3(2 * std::min(Multiprocessors() / 2, tiles)),
      .threads = kThreads,
      .shared_bytes = kSharedBytes<Format>,
      .cluster = 2};
  Launch(WideGemmKernel<Format>, shape, options, "Gemm", weight.map, x.wide_map,
         a);
}

}  // namespace

bool WideGemmTakes(const GemmWeight& weight) {
  // Rows leave in pieces of 16 bytes.
  return weight.block_scales == nullptr && weight.rows % 16 == 0;
}

void WideGemm(const GemmWeight& weight, int64_t leaf, const GemmInput& x,
              int64_t tokens, GemmOutput type, void* out,
              const LaunchOptions& options) {
  const int64_t block = kTileRowBytes / WeightElementBytes(weight.dtype);
  const Arguments a = {
      .rows = static_cast<int>(weight.rows),
      .tokens = static_cast<int>(tokens),
      .k_blocks = static_cast<int>((weight.columns + block - 1) / block),
      .leaf_blocks = static_cast<int>(leaf / block),
      .leaves = static_cast<int>((weight.columns + leaf - 1) / leaf),
      .scale = weight.scale,
      .row_scales = weight.row_scales,
      .token_scales = x.scales,
      .out = out,
      .type = type};
  switch (weight.dtype) {
    case WeightDtype::kFp8E4m3:
      return Run<E4m3Format>(weight, x, a, options);
    case WeightDtype::kFp16:
      return Run<Fp16Format>(weight, x, a, options);
    default:
      return Run<Bf16Format>(weight, x, a, options);
  }
}

}  // namespace invar::cuda
