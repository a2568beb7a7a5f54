// The experts' products, and dense gate and up, with few tokens: a block has an
// entry of the plan's work and some rows. Dense gate and up can be blocks of
// the same launch: they need no plan, and run while the router makes it. Also
// the gathering of inputs, and which tile and kernel run: free.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/gemm_tile.h"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/silu_mul.h"

namespace invar::cuda {
namespace {

constexpr int kBlocks = 2;  // row blocks a warpgroup multiplies: gate and up

struct Problem {
  CUtensorMap weights;
  CUtensorMap x;
  ExpertArguments a;
};

// All of a launch: the experts' products, or a dense one alone; and, beside the
// experts' gate and up, a dense gate and up.
struct Problems {
  Problem of[2];
  int beside_items;  // the first of the grid's y are the dense one's
  int beside_row_blocks;
  bool gate;  // LaunchOptions
};

template <int kTokens, int kGroups>
using ExpertTileType = Tile<kTokens, kBlocks, kGroups>;

// Which tokens this block multiplies; count below 1: none.
__device__ ExpertWork FindWork(const ExpertArguments& a, int item, int tile) {
  if (a.work == nullptr) {
    return {0, item * tile, min(tile, a.tokens - item * tile), 0};
  }
  if (!a.early) WaitForPriorKernel();
  // Both in one trip to memory; what lies past the count is not heeded.
  const int4 entry = reinterpret_cast<const int4*>(a.work)[item / a.parts];
  if (item / a.parts >= *a.work_count) return {0, 0, 0, 0};
  ExpertWork work = {entry.x, entry.y, entry.z, 0};
  const int skipped = item % a.parts * tile;
  work.first += skipped;
  work.count -= skipped;
  if (a.parts > 1) work.count = min(work.count, tile);
  return work;
}

// The row of x that token t of the work is: gate and up gather, down has its
// rows in the order of the groups.
__device__ int InputRow(const ExpertArguments& a, const ExpertWork& work, int t,
                        bool gather) {
  const int place = work.first + min(t, work.count - 1);
  return gather ? a.order[place] / a.top_k : place;
}

// As ScalesOf in gemm.cu. The warpgroup's row blocks are gate's and up's at
// first_row, or two neighbouring ones of down from there.
template <typename Format, int kTokens, bool kGateUp>
__device__ auto ScalesOf(const ExpertArguments& a, const ExpertWork& work,
                         int first_row, bool gather, int* input_row) {
  if constexpr (std::is_same_v<Format, ScaledE4m3Format>) {
    if (a.work != nullptr || !a.early) WaitForPriorKernel();
    for (int t = threadIdx.x; t < kTokens; t += blockDim.x) {
      input_row[t] = InputRow(a, work, t, gather);
    }
    __syncthreads();
    BlockScales<kTokens, kBlocks> scales = {.inputs = a.group_scales,
                                            .k_blocks = a.k_blocks,
                                            .input_row = input_row};
    const int row_blocks = static_cast<int>(ScaleBlocks(a.rows));
    const int matrices = kGateUp ? 2 : 1;
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      const int row =
          min(first_row + (kGateUp ? 0 : m * kProductRows), a.rows - 1);
      const int64_t matrix = work.expert * matrices + (kGateUp ? m : 0);
      scales.weights[m] =
          a.block_scales +
          (matrix * row_blocks + row / static_cast<int>(kScaleBlock)) *
              a.k_blocks;
    }
    return scales;
  } else {
    return NoScales();
  }
}

// What scales a warpgroup's sums. The expert's own are loaded when this is
// made, and come while products run; nothing waits for them before.
template <bool kGateUp>
struct SumScales {
  const ExpertArguments& a;
  float of_expert;
  float of_expert_up;
  const float* rows;  // of the expert, or null

  __device__ SumScales(const ExpertArguments& a, const ExpertWork& work)
      : a(a),
        of_expert(a.scales == nullptr ? 1.0f : a.scales[work.expert]),
        of_expert_up(a.up_scales == nullptr ? 1.0f : a.up_scales[work.expert]),
        rows(a.row_scales == nullptr
                 ? nullptr
                 : a.row_scales + static_cast<int64_t>(work.expert) * a.rows *
                                      (kGateUp ? 2 : 1)) {}
  __device__ float OfRow(int row) const {
    return a.scale * of_expert * (rows == nullptr ? 1.0f : rows[row]);
  }
  __device__ float OfUpRow(int row) const {
    return a.up_scale * of_expert_up *
           (rows == nullptr ? 1.0f : rows[a.rows + row]);
  }
  __device__ float OfToken(int row_of_x) const {
    return a.token_scales == nullptr ? 1.0f : a.token_scales[row_of_x];
  }
};

// What a warpgroup's sums of gate and up become; its rows begin at first_row.
template <int kTokens>
__device__ void StoreActivated(const ExpertArguments& a, const ExpertWork& work,
                               const SumScales<true>& scales, int first_row,
                               bool gather,
                               const float (&sum)[kBlocks][kTokens / 2]) {
  const int thread = threadIdx.x % 128;
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    const int t = FragmentToken(thread, i);
    if (t >= work.count) continue;
    const float token_scale = scales.OfToken(InputRow(a, work, t, gather));
    const int r = first_row + FragmentRow(thread, i);
    if (r >= a.rows) continue;
    const float gate = scales.OfRow(r) * token_scale;
    const float up = scales.OfUpRow(r) * token_scale;
    StoreInput(a.activated, static_cast<int64_t>(work.first + t) * a.rows + r,
               SwiGlu(sum[0][i] * gate, sum[1][i] * up));
  }
}

// The tokens that a lane stores of down, one of each eight. It has a row of two
// neighbours, and lane ^ 4 the row beside it: each takes both rows of one
// token, 4 bytes, which are half the stores.
template <int kTokens>
struct SlotPlaces {
  int odd;  // whether the lane's is the second of the two
  int slot[kTokens / 8];

  __device__ SlotPlaces(const ExpertArguments& a, const ExpertWork& work)
      : odd(FragmentRow(threadIdx.x % 128, 0) % 2) {
#pragma unroll
    for (int i = 0; i < kTokens / 8; ++i) {
      const int t = FragmentToken(threadIdx.x % 128, 4 * i) + odd;
      slot[i] = a.order[work.first + min(t, work.count - 1)];
    }
  }
};

template <int kTokens>
__device__ void StoreSlots(const ExpertArguments& a, const ExpertWork& work,
                           const SumScales<false>& scales,
                           const SlotPlaces<kTokens>& places, int first_row,
                           const float (&sum)[kBlocks][kTokens / 2]) {
  const int thread = threadIdx.x % 128;
  float factor[kBlocks][2];  // of row block m, and of its rows g and g + 8
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = first_row + m * kProductRows + FragmentRow(thread, 2 * h);
      factor[m][h] = scales.OfRow(min(r, a.rows - 1));
    }
  }
  const int odd = places.odd;
#pragma unroll
  for (int i = 0; i < kTokens / 2; i += 4) {
    const int t = FragmentToken(thread, i);
    if (t - t % 8 >= work.count) break;  // the same in all lanes
    const float scale[2] = {
        scales.OfToken(InputRow(a, work, t, /*gather=*/false)),
        scales.OfToken(InputRow(a, work, t + 1, /*gather=*/false))};
    __nv_bfloat16* const to =
        a.slots + static_cast<int64_t>(places.slot[i / 4]) * a.rows;
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float* const two = &sum[m][i + 2 * h];
        const float own[2] = {two[0] * (factor[m][h] * scale[0]),
                              two[1] * (factor[m][h] * scale[1])};
        const float beside =
            __shfl_xor_sync(0xffffffff, odd ? own[0] : own[1], 4);
        const int r = first_row + m * kProductRows +
                      FragmentRow(thread, 2 * h) - odd;  // the even one
        if (t + odd < work.count && r < a.rows) {
          *reinterpret_cast<uint32_t*>(to + r) =
              odd ? Pack<__nv_bfloat16>(beside, own[1])
                  : Pack<__nv_bfloat16>(own[0], beside);
        }
      }
    }
  }
}

// kGateUp: row block 0 of a warpgroup is 64 rows of gate, block 1 the same rows
// of up, so that SwiGLU needs no exchange. Else the blocks are 128 rows of
// down.
template <typename Format, int kTokens, int kGroups, int kStages, bool kGateUp>
__global__ void __launch_bounds__(ExpertTileType<kTokens, kGroups>::kThreads, 1)
    ExpertKernel(const __grid_constant__ Problems problems) {
  using TileType = ExpertTileType<kTokens, kGroups>;
  constexpr int kValues = kTokens / 2;
  // Rows of the output that one block makes.
  constexpr int kRows =
      kGateUp ? kGroups * kProductRows : kGroups * kBlocks * kProductRows;
  extern __shared__ std::byte shared[];
  const Ring<TileType, kStages> ring(shared);
  if (threadIdx.x == 0) Ring<TileType, kStages>(ring).Init();
  if (!problems.gate) AllowNextKernel();
  __syncthreads();
  int item = blockIdx.y;
  int row_block = blockIdx.x;
  bool beside = false;
  if constexpr (kGateUp) {
    beside = item < problems.beside_items;
    if (beside) {
      const int at = item * gridDim.x + row_block;
      row_block = at % problems.beside_row_blocks;
      item = at / problems.beside_row_blocks;
    } else {
      item -= problems.beside_items;
    }
  }
  const Problem& p = problems.of[beside];
  const ExpertArguments& a = p.a;
  const ExpertWork work = FindWork(a, item, kTokens);
  if (work.count <= 0) return;
  const int row = row_block * kRows;
  const int group = threadIdx.x / 128;
  const bool gather = kGateUp && a.work != nullptr && !a.gathered;
  constexpr int kGroupRows = kRows / kGroups;
  __shared__ int input_row[kTokens];
  auto scales = ScalesOf<Format, kTokens, kGateUp>(
      a, work, row + group * kGroupRows, gather, input_row);
  if (group == kGroups) {
    const int expert_row = work.expert * a.rows * (kGateUp ? 2 : 1) + row;
    // Only what the work has of a tile's tokens is read, in boxes of eight: the
    // rest multiplies what lies there, each token its own sums alone.
    const int boxes = (work.count + 7) / 8;
    const uint32_t bytes =
        TileType::kWeightBytes +
        (gather ? work.count : min(8 * boxes, kTokens)) * kTileRowBytes;
    // The tokens of this lane's rows.
    constexpr int kPerLane = (kTokens + 31) / 32;
    int token[kPerLane] = {};
    if (gather) {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int r = threadIdx.x % 32 + 32 * i;
        if (r < work.count) token[i] = a.order[work.first + r] / a.top_k;
      }
    }
    Produce<Ring<TileType, kStages>, kStages>(
        ring, threadIdx.x % 32, a.k_blocks, bytes,
        /*early=*/a.work == nullptr && a.early,
        [&](int lane, int stage, int b) {
          if (lane >= TileType::kRowBlocks) return;
          const int from =
              kGateUp ? expert_row + lane / 2 * kProductRows + lane % 2 * a.rows
                      : expert_row + lane * kProductRows;
          CopyBox(ring.weights(stage) + lane * TileType::kBlockBytes,
                  &p.weights, b * kTileRowBytes, from, &ring.full[stage]);
        },
        [&](int lane, int stage, int b) {
          if (gather) {
#pragma unroll
            for (int i = 0; i < kPerLane; ++i) {
              const int r = lane + 32 * i;
              if (r < work.count) {
                CopyBox(ring.inputs(stage) + r * kTileRowBytes, &p.x,
                        b * kTileRowBytes, token[i], &ring.full[stage]);
              }
            }
          } else if (lane < min(boxes, kTokens / 8)) {
            CopyBox(ring.inputs(stage) + lane * 8 * kTileRowBytes, &p.x,
                    b * kTileRowBytes, work.first + lane * 8,
                    &ring.full[stage]);
          }
        });
    return;
  }
  // What is beside waits for nothing yet, and lets the next kernel in by its
  // end.
  if (problems.gate && !beside) {
    WaitForPriorKernel();
    AllowNextKernel();
  }
  const SumScales<kGateUp> sum_scales(a, work);
  const int first_row = row + group * kGroupRows;
  Walk<kStages> walk;
  float sum[kBlocks][kValues];
  const auto multiply = [&] {
    Multiply<Format, kTokens, kBlocks, Ring<TileType, kStages>, kStages>(
        ring, walk, group * kBlocks, a.k_blocks, 0, scales, sum);
    WaitForPriorKernel();
  };
  if constexpr (kGateUp) {
    multiply();
    StoreActivated<kTokens>(a, work, sum_scales, first_row, gather, sum);
  } else {
    const SlotPlaces<kTokens> places(a, work);
    multiply();
    StoreSlots<kTokens>(a, work, sum_scales, places, first_row, sum);
  }
}

template <typename Format, int kTokens, int kGroups, bool kGateUp>
void Run(Problems& p, int64_t items, const LaunchOptions& options) {
  using TileType = ExpertTileType<kTokens, kGroups>;
  // Small tiles leave room for two blocks a multiprocessor and more.
  constexpr int kStages = kTokens <= 16 ? 6 : 4;
  constexpr int kRows = TileType::kRows / (kGateUp ? 2 : 1);
  const auto row_blocks = [](const ExpertArguments& a) {
    return (a.rows + kRows - 1) / kRows;
  };
  const int width = row_blocks(p.of[0].a);
  const ExpertArguments& beside = p.of[1].a;
  p.beside_row_blocks = row_blocks(beside);
  p.beside_items =
      (p.beside_row_blocks * ((beside.tokens + kTokens - 1) / kTokens) + width -
       1) /
      width;
  const LaunchShape shape = {
      .grid = dim3(width, static_cast<unsigned>(p.beside_items + items)),
      .threads = TileType::kThreads,
      .shared_bytes = Ring<TileType, kStages>::kSharedBytes};
  Launch(ExpertKernel<Format, kTokens, kGroups, kStages, kGateUp>, shape,
         options, kGateUp ? "ExpertsGateUp" : "ExpertsDown", p);
}

template <typename Format, bool kGateUp>
void RunTile(Problems& p, int tile, int64_t items,
             const LaunchOptions& options) {
  switch (tile) {
    case 8:
      return Run<Format, 8, 1, kGateUp>(p, items, options);
    case 16:
      return Run<Format, 16, 1, kGateUp>(p, items, options);
    case 32:
      return Run<Format, 32, 1, kGateUp>(p, items, options);
    case 64:
      return Run<Format, 64, 1, kGateUp>(p, items, options);
    default:
      // Several blocks share what WideExperts does not take.
      p.of[0].a.parts = tile / 64;
      return Run<Format, 64, 1, kGateUp>(p, p.of[0].a.parts * items, options);
  }
}

// What all products take from their operands.
void SetOperands(const GemmWeight& weights, const GemmInput& input,
                 ExpertArguments& a) {
  a.parts = 1;
  a.row_scales = weights.block_scales == nullptr ? weights.row_scales : nullptr;
  a.block_scales = weights.block_scales;
  (weights.block_scales == nullptr ? a.token_scales : a.group_scales) =
      input.scales;
  a.k_blocks =
      static_cast<int>((weights.columns * WeightElementBytes(weights.dtype) +
                        kTileRowBytes - 1) /
                       kTileRowBytes);
}

ExpertArguments DenseArguments(const SwiGluTask& task, int64_t tokens) {
  const GemmWeight& gate_up = *task.gate_up;
  const bool scaled = gate_up.block_scales == nullptr;
  ExpertArguments a = {.tokens = static_cast<int>(tokens),
                       .rows = static_cast<int>(gate_up.rows / 2),
                       .scale = scaled ? gate_up.scale : 1.0f,
                       .up_scale = scaled ? task.up_scale : 1.0f,
                       .activated = task.activated};
  SetOperands(gate_up, *task.x, a);
  return a;
}

// beside: run in the same launch if it can be, else before it.
template <bool kGateUp>
void RunDtype(const GemmWeight& weights, const GemmInput& input,
              const CUtensorMap& x, ExpertArguments a, int tile, int64_t items,
              const LaunchOptions& options,
              const SwiGluTask* beside = nullptr) {
  SetOperands(weights, input, a);
  const bool wide =
      tile == kWideExpertTile && WideExpertsTake(weights.dtype, a, kGateUp);
  Problems p = {};
  p.gate = options.gate;
  if (beside != nullptr) {
    const GemmWeight& dense = *beside->gate_up;
    const ExpertArguments arguments = DenseArguments(*beside, a.tokens);
    if (wide || tile > 64 || dense.dtype != weights.dtype ||
        arguments.k_blocks != a.k_blocks ||
        (dense.block_scales == nullptr) != (weights.block_scales == nullptr)) {
      GemmSwiGlu(dense, beside->up_scale, *beside->x, a.tokens,
                 beside->activated,
                 {.stream = options.stream,
                  .overlap = options.overlap,
                  .early = options.early});
    } else {
      p.of[1] = {dense.map, beside->x->map, arguments};
      p.of[1].a.early = options.early;
    }
  } else {
    a.early = options.early;
  }
  if (wide) {
    return WideExperts(weights.dtype, kGateUp, weights.map, input.wide_map, a,
                       items, options);
  }
  p.of[0] = {weights.map, x, a};
  switch (weights.dtype) {
    case WeightDtype::kFp8E4m3:
      if (weights.block_scales != nullptr) {
        return RunTile<ScaledE4m3Format, kGateUp>(p, tile, items, options);
      }
      return RunTile<E4m3Format, kGateUp>(p, tile, items, options);
    case WeightDtype::kFp16:
      return RunTile<Fp16Format, kGateUp>(p, tile, items, options);
    default:
      return RunTile<Bf16Format, kGateUp>(p, tile, items, options);
  }
}

// A slot a warp, four loads of a lane at once.
constexpr int kGatherWarps = 8;
__global__ void __launch_bounds__(kGatherWarps * 32)
    GatherKernel(const InputRows x, const int32_t* order, int slots, int top_k,
                 const InputRows to) {
  AllowNextKernel();
  WaitForPriorKernel();
  const int64_t place = blockIdx.x * kGatherWarps + threadIdx.x / 32;
  if (place >= slots) return;
  const int64_t token = order[place] / top_k;
  const int lane = threadIdx.x % 32;
  const int quads = static_cast<int>(x.row_bytes / 16);
  const auto* from = static_cast<const uint4*>(x.data) + token * quads;
  auto* row = static_cast<uint4*>(to.data) + place * quads;
  constexpr int kAtOnce = 4;
  for (int first = lane; first < quads; first += 32 * kAtOnce) {
    uint4 codes[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + 32 * i < quads) codes[i] = from[first + 32 * i];
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + 32 * i < quads) row[first + 32 * i] = codes[i];
    }
  }
  for (int i = lane; i < x.row_scales; i += 32) {
    to.scales[place * x.row_scales + i] = x.scales[token * x.row_scales + i];
  }
}

int64_t Items(int64_t tokens, int64_t top_k, int64_t experts, int tile) {
  const int64_t slots = tokens * top_k;
  return std::min(experts, slots) + slots / tile;
}

}  // namespace

int ExpertTile(int64_t tokens, int64_t top_k, int64_t experts) {
  // About twice an expert's average share, so that few have a second tile.
  const int64_t share = 2 * tokens * top_k / experts;
  if (share <= 8 || tokens <= 8) return 8;
  return share <= 16   ? 16
         : share <= 32 ? 32
         : share <= 80 ? 64
                       : kWideExpertTile;
}

bool GatherPays(int64_t tokens, int64_t top_k, int64_t experts) {
  return ExpertTile(tokens, top_k, experts) >= 64;
}

void GatherInputs(const InputRows& x, const ExpertPlan& plan, int64_t tokens,
                  int64_t top_k, const InputRows& gathered,
                  const LaunchOptions& options) {
  if (tokens == 0) return;
  const int slots = static_cast<int>(tokens * top_k);
  Launch(GatherKernel,
         {.grid = dim3((slots + kGatherWarps - 1) / kGatherWarps),
          .threads = kGatherWarps * 32},
         options, "GatherInputs", x, plan.order, slots, static_cast<int>(top_k),
         gathered);
}

int64_t MaxExpertWork(int64_t tokens, int64_t top_k, int64_t experts) {
  return Items(tokens, top_k, experts, ExpertTile(tokens, top_k, experts));
}

void ExpertsGateUp(const GroupedWeights& experts, const GemmInput& x,
                   const ExpertPlan& plan, int64_t tokens, int64_t top_k,
                   const InputSink& activated, const LaunchOptions& options,
                   int tile, bool gathered, const SwiGluTask* beside) {
  if (tokens == 0) return;
  if (tile == 0) tile = ExpertTile(tokens, top_k, experts.experts);
  RunDtype<true>(experts.gate_up, x, gathered ? x.map : x.row_map,
                 {.work = plan.work,
                  .work_count = plan.counts,
                  .order = plan.order,
                  .top_k = static_cast<int>(top_k),
                  .gathered = gathered,
                  .tokens = static_cast<int>(tokens),
                  .rows = static_cast<int>(experts.inner),
                  .scales = experts.gate_scales,
                  .up_scales = experts.up_scales,
                  .scale = 1.0f,
                  .up_scale = 1.0f,
                  .activated = activated},
                 tile, Items(tokens, top_k, experts.experts, tile), options,
                 beside);
}

void ExpertsDown(const GroupedWeights& experts, const GemmInput& activated,
                 const ExpertPlan& plan, int64_t tokens, int64_t top_k,
                 __nv_bfloat16* slots, const LaunchOptions& options, int tile) {
  if (tokens == 0) return;
  if (tile == 0) tile = ExpertTile(tokens, top_k, experts.experts);
  RunDtype<false>(experts.down, activated, activated.map,
                  {.work = plan.work,
                   .work_count = plan.counts,
                   .order = plan.order,
                   .top_k = static_cast<int>(top_k),
                   .tokens = static_cast<int>(tokens),
                   .rows = static_cast<int>(experts.hidden),
                   .scales = experts.down_scales,
                   .scale = 1.0f,
                   .slots = slots},
                  tile, Items(tokens, top_k, experts.experts, tile), options);
}

void GemmSwiGlu(const GemmWeight& gate_up, float up_scale, const GemmInput& x,
                int64_t tokens, const InputSink& activated,
                const LaunchOptions& options, int tile) {
  if (tokens == 0) return;
  if (tile == 0) {
    tile = tokens <= 8     ? 8
           : tokens <= 16  ? 16
           : tokens <= 32  ? 32
           : tokens <= 512 ? 64
                           : kWideExpertTile;
  }
  RunDtype<true>(gate_up, x, x.map,
                 DenseArguments({&gate_up, up_scale, &x, activated}, tokens),
                 tile, (tokens + tile - 1) / tile, options);
}

}  // namespace invar::cuda
