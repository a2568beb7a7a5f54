// Leaves of K with many tokens. Blocks go on from tile to tile, so that a
// tile's end hides behind the next one's products; sums of leaves wait in
// registers, or in shared memory, from where outputs leave too.
#include <algorithm>

#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/gemm_problem.h"
#include "kernels/cuda/wide_gemm.h"
#include "kernels/cuda/wide_store.cuh"

namespace invar::cuda {
namespace {

// As many tokens as leave room in registers for the sums of a leaf and of a
// pair of leaves that wait for others. What is promoted has a second set as it
// is.
template <typename Format>
inline constexpr int kTokens = kPromoted<Format> ? 96 : 128;
template <typename Format>
inline constexpr int kValues = kTokens<Format> / 2;
template <typename Format>
using TileType = WideTile<kTokens<Format>, 1, kPromoted<Format> ? 6 : 5>;
constexpr int kGroups = TileType<Bf16Format>::kGroups;
constexpr int kThreads = TileType<Bf16Format>::kThreads;
constexpr int kRows = kGroups * kProductRows;

// Sums of four leaves wait in shared memory, each thread's in a column. In
// their turn, outputs leave from there: the copy engine takes them while the
// next tile's first leaves are multiplied.
template <typename Format>
union Waiting {
  float4 sums[kValues<Format> / 4][128];
  // Up to two, of 128 bytes of rows, swizzled.
  std::byte boxes[2][kTokens<Format> * kTileRowBytes];

  // Returns, to the whole group, once outputs have left.
  __device__ void Clear(int group) const {
    if (threadIdx.x % 128 == 0) CopyOutWait();
    BarrierSync(kGroupBarrier + group, 128);
  }
  __device__ void Put(const float (&sum)[kValues<Format>]) {
#pragma unroll
    for (int i = 0; i < kValues<Format>; i += 4) {
      sums[i / 4][threadIdx.x % 128] = {sum[i], sum[i + 1], sum[i + 2],
                                        sum[i + 3]};
    }
  }
  __device__ void AddTo(float (&sum)[kValues<Format>]) const {
#pragma unroll
    for (int i = 0; i < kValues<Format>; i += 4) {
      const float4 add = sums[i / 4][threadIdx.x % 128];
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

// sum = the tile's products, its leaves folded as the tree of kernels/types.h,
// of which absent places are skipped.
static_assert(kMaxLeaves == 8);
template <typename Format>
__device__ void MultiplyLeaves(const WideRing<TileType<Format>>& ring,
                               Walk<TileType<Format>::kStages>& walk,
                               const GemmArguments& a, int group,
                               Waiting<Format>& waiting,
                               float (&sum)[1][kValues<Format>]) {
  int left = a.k_blocks;
  const auto multiply = [&] {
    const int blocks = min(a.leaf_blocks, left);
    left -= blocks;
    // Also where the first product forgets it: so no move of what the registers
    // held comes between products, for which these would wait.
    if constexpr (!kPromoted<Format>) {
#pragma unroll
      for (int i = 0; i < kValues<Format>; ++i) sum[0][i] = 0.0f;
    }
    MultiplyChain<Format, TileType<Format>>(ring, walk, group, blocks, sum);
  };
  // sum = those of `multiply` and, if some are left, of `multiply` again.
  const auto twice = [&](const auto& multiply) {
    multiply();
    if (left == 0) return;
    float first[kValues<Format>];
#pragma unroll
    for (int i = 0; i < kValues<Format>; ++i) first[i] = sum[0][i];
    multiply();
#pragma unroll
    for (int i = 0; i < kValues<Format>; ++i) sum[0][i] += first[i];
  };
  const auto multiply_four = [&] { twice([&] { twice(multiply); }); };
  multiply_four();
  if (left == 0) return;
  waiting.Clear(group);
  waiting.Put(sum[0]);
  multiply_four();
  waiting.AddTo(sum[0]);
}

// What the group's sums become: StoreOutput of gemm.cu. Their values go to
// boxes of the rows from first_row, and are on their way when this returns.
template <typename Format, typename Element>
__device__ void StoreBoxes(const CUtensorMap* map, int first_row, int token,
                           int group, Waiting<Format>& waiting,
                           const float (&sum)[kValues<Format>]) {
  constexpr int kSize = static_cast<int>(sizeof(Element));
  constexpr int kBoxRows = kTileRowBytes / kSize;
  const int thread = threadIdx.x % 128;
  waiting.Clear(group);
  const auto place = [&](int t, int row) {
    const int byte = row % kBoxRows * kSize;
    return waiting.boxes[row / kBoxRows] + t * kTileRowBytes +
           ((byte / 16 ^ t % 8) * 16 + byte % 16);
  };
  if constexpr (kSize == 2) {
#pragma unroll
    for (int t = 0; t < kTokens<Format>; t += 16) {
      PlaceSixteenTokens<Element>(place, t, sum);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kValues<Format>; ++i) {
      *reinterpret_cast<Element*>(
          place(FragmentToken(thread, i), FragmentRow(thread, i))) = sum[i];
    }
  }
  AsyncFence();
  BarrierSync(kGroupBarrier + group, 128);
  if (thread == 0) {
#pragma unroll
    for (int box = 0; box < kProductRows / kBoxRows; ++box) {
      CopyBoxOut(map, (first_row + box * kBoxRows) * kSize, token,
                 waiting.boxes[box]);
    }
    CopyOutCommit();
  }
}

template <typename Format>
__device__ void StoreOutput(const GemmArguments& a, const CUtensorMap* map,
                            int first_row, int token, int group,
                            Waiting<Format>& waiting,
                            float (&sum)[kValues<Format>]) {
  const int thread = threadIdx.x % 128;
  float scale[2];  // of rows g and g + 8
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = min(first_row + FragmentRow(thread, 2 * h), a.rows - 1);
    scale[h] = a.row_scales == nullptr ? a.scale : a.scale * a.row_scales[row];
  }
#pragma unroll
  for (int i = 0; i < kValues<Format>; ++i) {
    float factor = scale[i / 2 % 2];
    if (a.token_scales != nullptr) {
      factor *=
          a.token_scales[min(token + FragmentToken(thread, i), a.tokens - 1)];
    }
    sum[i] *= factor;
  }
  if (a.type == GemmOutput::kFp32) {
    StoreBoxes<Format, float>(map, first_row, token, group, waiting, sum);
  } else {
    StoreBoxes<Format, __nv_bfloat16>(map, first_row, token, group, waiting,
                                      sum);
  }
}

// A pair of blocks, with neighbouring tokens, takes every pair of tiles that is
// gridDim.x / 2 after the last; rows first: weights stay in L2, and tokens are
// read from memory once. (The other way round the outputs had pushed them out
// between one row tile and the next.) Past the last token a block multiplies
// zeros for its neighbour's sake.
template <typename Format>
__global__ void __launch_bounds__(kThreads, 1)
    WideGemmKernel(const __grid_constant__ CUtensorMap weights,
                   const __grid_constant__ CUtensorMap x,
                   const __grid_constant__ CUtensorMap x_rest,
                   const __grid_constant__ CUtensorMap out,
                   const GemmArguments a) {
  extern __shared__ std::byte shared[];
  AllowNextKernel();
  const int rank = blockIdx.x % 2;
  const WideRing<TileType<Format>> ring(shared);
  if (threadIdx.x == 0) {
    PrefetchMap(&weights);
    PrefetchMap(&x);
    PrefetchMap(&x_rest);
    PrefetchMap(&out);
    WideRing<TileType<Format>>(ring).Init();
  }
  ClusterSync();
  WaitForPriorKernel();
  const int row_tiles = (a.rows + kRows - 1) / kRows;
  const int pairs =
      (a.tokens + 2 * kTokens<Format> - 1) / (2 * kTokens<Format>);
  const int count = pairs * row_tiles;
  const auto row_of = [&](int pair) { return pair % row_tiles * kRows; };
  const auto token_of = [&](int pair) {
    return (2 * (pair / row_tiles) + rank) * kTokens<Format>;
  };
  const int first = blockIdx.x / 2;
  const int step = gridDim.x / 2;
  const int group = threadIdx.x / 128;
  Walk<TileType<Format>::kStages> walk;
  if (group == kGroups) {
    ReduceRegisters<TileType<Format>::kProducerRegisters>();
    if (threadIdx.x % 128 < 32) {
      for (int pair = first; pair < count; pair += step) {
        const int row = row_of(pair);
        ProduceWide<TileType<Format>>(
            ring, walk, rank, /*common=*/true, &weights,
            [&](int i) { return row + i * kProductRows; }, &x, &x_rest,
            token_of(pair), a.k_blocks);
      }
    }
  } else {
    RaiseRegisters<TileType<Format>::kMultiplierRegisters>();
    if constexpr (kPromoted<Format>) BeginTurns(group);
    auto& waiting = reinterpret_cast<Waiting<Format>*>(
        ring.stages +
        TileType<Format>::kStages * TileType<Format>::kStageBytes)[group];
    for (int pair = first; pair < count; pair += step) {
      float sum[1][kValues<Format>];
      MultiplyLeaves<Format>(ring, walk, a, group, waiting, sum);
      StoreOutput<Format>(a, &out, row_of(pair) + group * kProductRows,
                          token_of(pair), group, waiting, sum[0]);
    }
    if (threadIdx.x % 128 == 0) CopyOutEnd();
  }
  ClusterArrive();
  ClusterWait();  // no block leaves while it is being told
}

template <typename Format>
void Run(const GemmProblem& p, const CUtensorMap& x_rest,
         const LaunchOptions& options) {
  const GemmArguments& a = p.a;
  const int64_t size = a.type == GemmOutput::kFp32 ? 4 : 2;
  CUtensorMap out;
  Check(MakeWideOutput(a.out, a.tokens, a.rows * size, kTokens<Format>, &out)
            ? cudaSuccess
            : cudaErrorInvalidValue,
        "describing a product's outputs");
  const int pairs =
      (a.tokens + 2 * kTokens<Format> - 1) / (2 * kTokens<Format>);
  const int tiles = pairs * ((a.rows + kRows - 1) / kRows);
  const LaunchShape shape = {
      .grid = dim3(2 * std::min(Multiprocessors() / 2, tiles)),
      .threads = kThreads,
      .shared_bytes = kSharedBytes<Format>,
      .cluster = 2};
  Launch(WideGemmKernel<Format>, shape, options, "Gemm", p.weights, p.x, x_rest,
         out, a);
}

}  // namespace

bool WideGemmTakes(const GemmWeight& weight) {
  // Rows leave in pieces of 16 bytes.
  return weight.block_scales == nullptr && weight.rows % 16 == 0;
}

void WideGemm(const GemmWeight& weight, int64_t leaf, const GemmInput& x,
              int64_t tokens, GemmOutput type, void* out,
              const LaunchOptions& options) {
  const GemmTask task = {&weight, leaf, &x, out};
  const GemmProblem problem =
      MakeProblem(task, {{task}, 1, static_cast<int>(tokens), type},
                  /*box_rows=*/kProductRows);
  switch (weight.dtype) {
    case WeightDtype::kFp8E4m3:
      return Run<E4m3Format>(problem, x.map, options);
    case WeightDtype::kFp16:
      return Run<Fp16Format>(problem, x.map, options);
    default:
      return Run<Bf16Format>(problem, x.map, options);
  }
}

}  // namespace invar::cuda
