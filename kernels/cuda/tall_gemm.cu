// Each block goes on from tile to tile, so that the next one's weights are on
// the way while this one is multiplied and leaves. Nothing is folded, so a
// warpgroup's registers hold the sums of 256 tokens: weights come from L2 once.
#include <algorithm>

#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/gemm_store.cuh"
#include "kernels/cuda/gemm_tile.h"
#include "kernels/cuda/tall_gemm.h"

namespace invar::cuda {
namespace {

// 128 rows by kTokens; a warpgroup multiplies one row block by parts of at most
// 128 tokens. The third warpgroup produces, with one warp, and gives its
// registers to the others.
template <int kTokens_, int kStages_>
struct TallTile : Tile<kTokens_, 1, 2, 128> {
  static constexpr int kTokens = kTokens_;
  static constexpr int kStages = kStages_;
  static constexpr int kPartTokens = kTokens < 128 ? kTokens : 128;
  static constexpr int kParts = kTokens / kPartTokens;
  static constexpr int kValues = kPartTokens / 2;  // a thread has of a part
};
constexpr int kProducerRegisters = 40;
constexpr int kMultiplierRegisters = 232;

struct Arguments {
  int rows;
  int tokens;
  int k_blocks;  // stages of 128 bytes that K takes
  float scale;
  const float* row_scales;    // (rows), or null
  const float* token_scales;  // (tokens), or null
  void* out;
  GemmOutput type;
  bool early;  // LaunchOptions
};

// Units that a warp passes through shared memory together.
constexpr int kUnitsAtOnce = 4;
template <typename TileType>
constexpr int kSharedBytes = Ring<TileType, TileType::kStages>::kSharedBytes +
                             TileType::kMultipliers / 32 * kUnitsAtOnce * 32 *
                                 sizeof(float4);

// A warp's part of a row block's sums; `units` is its own.
template <typename TileType>
__device__ void StoreSums(
    const Arguments& a, int first_row, int first_token, float4* units,
    const float (&sum)[TileType::kParts][TileType::kValues]) {
  Output<Arguments> output(a, first_row + threadIdx.x % 128 / 32 * kUnitRows,
                           first_token);
  const UnitReader reader(units);
#pragma unroll
  for (int part = 0; part < TileType::kParts; ++part) {
    const float(&values)[TileType::kValues] = sum[part];
#pragma unroll
    for (int j = 0; j < TileType::kValues; j += 4 * kUnitsAtOnce) {
      __syncwarp();  // those before have left
#pragma unroll
      for (int u = 0; u < kUnitsAtOnce; ++u) {
        const float* const quad = &values[j + 4 * u];
        units[u * 32 + QuadPlace(threadIdx.x % 32)] = {quad[0], quad[1],
                                                       quad[2], quad[3]};
      }
      __syncwarp();
#pragma unroll
      for (int u = 0; u < kUnitsAtOnce; ++u) output.Store(reader(u));
    }
  }
}

// Row blocks are dealt out evenly, an odd one alone in a block's last tile.
// Blocks beside each other have the same ones, and other tokens.
template <typename Format, typename TileType>
__global__ void __launch_bounds__(TileType::kThreads, 1)
    TallKernel(const __grid_constant__ CUtensorMap weights,
               const __grid_constant__ CUtensorMap x, const Arguments a) {
  constexpr int kStages = TileType::kStages;
  using RingType = Ring<TileType, kStages>;
  extern __shared__ std::byte shared[];
  const RingType ring(shared);
  if (threadIdx.x == 0) RingType(ring).Init();
  AllowNextKernel();
  __syncthreads();
  const int token_tiles =
      (a.tokens + TileType::kTokens - 1) / TileType::kTokens;
  const int token = blockIdx.x % token_tiles * TileType::kTokens;
  const int64_t team = blockIdx.x / token_tiles;
  const int64_t teams = gridDim.x / token_tiles;
  const int64_t row_blocks = (a.rows + kProductRows - 1) / kProductRows;
  const int first = static_cast<int>(row_blocks * team / teams);
  const int end = static_cast<int>(row_blocks * (team + 1) / teams);
  const int group = threadIdx.x / 128;
  if (group == TileType::kRowBlocks) {
    ReduceRegisters<kProducerRegisters>();
    if (threadIdx.x % 128 < 32) {
      if (threadIdx.x % 32 == 0) PrefetchMap(&x);
      Produce<RingType, kStages>(
          ring, threadIdx.x % 32, (end - first + 1) / 2 * a.k_blocks,
          TileType::kStageBytes, a.early,
          [&](int lane, int stage, int b) {
            if (lane >= TileType::kRowBlocks) return;
            const int block = first + b / a.k_blocks * 2 + lane;
            // Past the end there is nothing to read, and zeros arrive.
            CopyBox(ring.weights(stage) + lane * TileType::kBlockBytes,
                    &weights, b % a.k_blocks * kTileRowBytes,
                    block < end ? block * kProductRows : a.rows,
                    &ring.full[stage]);
          },
          [&](int lane, int stage, int b) {
            if (lane >= TileType::kTokens / kProductRows) return;
            CopyBox(ring.inputs(stage) + lane * TileType::kBlockBytes, &x,
                    b % a.k_blocks * kTileRowBytes, token + lane * kProductRows,
                    &ring.full[stage]);
          });
    }
  } else {
    RaiseRegisters<kMultiplierRegisters>();
    float4* const units = reinterpret_cast<float4*>(
                              ring.stages + kStages * TileType::kStageBytes) +
                          threadIdx.x / 32 * kUnitsAtOnce * 32;
    Walk<kStages> walk;
    NoScales scales;
    for (int block = first + group; block < end + group; block += 2) {
      float sum[TileType::kParts][TileType::kValues];
      Multiply<Format, TileType::kPartTokens, TileType::kParts, RingType,
               kStages, /*kAlongTokens=*/true>(ring, walk, group, a.k_blocks, 0,
                                               scales, sum);
      if (block - group == first) WaitForPriorKernel();  // the first write
      if (block < end) {
        // The same in all tiles: what is made of it once for all would take
        // more registers than there are.
        int first_token = token;
        asm volatile("" : "+r"(first_token));
        StoreSums<TileType>(a, block * kProductRows, first_token, units, sum);
      }
    }
  }
}

template <typename Format, typename TileType>
void Run(const GemmWeight& weight, const GemmInput& x, const Arguments& a,
         const LaunchOptions& options) {
  static_assert(kSharedBytes<TileType> <= 227 * 1024);
  const int token_tiles =
      (a.tokens + TileType::kTokens - 1) / TileType::kTokens;
  const int row_tiles = (a.rows + TileType::kRows - 1) / TileType::kRows;
  const int teams =
      std::max(1, std::min(Multiprocessors() / token_tiles, row_tiles));
  const LaunchShape shape = {.grid = dim3(teams * token_tiles),
                             .threads = TileType::kThreads,
                             .shared_bytes = kSharedBytes<TileType>};
  Launch(TallKernel<Format, TileType>, shape, options, "Gemm", weight.map,
         x.wide_map, a);
}

template <typename Format>
void RunTile(const GemmWeight& weight, const GemmInput& x, const Arguments& a,
             int tile, const LaunchOptions& options) {
  switch (tile) {
    case 64:
      return Run<Format, TallTile<64, 8>>(weight, x, a, options);
    case 128:
      return Run<Format, TallTile<128, 6>>(weight, x, a, options);
    default:
      return Run<Format, TallTile<256, 4>>(weight, x, a, options);
  }
}

}  // namespace

bool TallGemmTakes(const GemmWeight& weight, int64_t leaf) {
  return leaf >= weight.columns && weight.block_scales == nullptr;
}

void TallGemm(const GemmWeight& weight, const GemmInput& x, int64_t tokens,
              GemmOutput type, void* out, const LaunchOptions& options,
              int tile) {
  if (tile == 0) tile = tokens <= 64 ? 64 : tokens <= 128 ? 128 : 256;
  const int64_t block = kTileRowBytes / WeightElementBytes(weight.dtype);
  const Arguments a = {
      .rows = static_cast<int>(weight.rows),
      .tokens = static_cast<int>(tokens),
      .k_blocks = static_cast<int>((weight.columns + block - 1) / block),
      .scale = weight.scale,
      .row_scales = weight.row_scales,
      .token_scales = x.scales,
      .out = out,
      .type = type,
      .early = options.early};
  switch (weight.dtype) {
    case WeightDtype::kFp8E4m3:
      return RunTile<E4m3Format>(weight, x, a, tile, options);
    case WeightDtype::kFp16:
      return RunTile<Fp16Format>(weight, x, a, tile, options);
    default:
      return RunTile<Bf16Format>(weight, x, a, tile, options);
  }
}

}  // namespace invar::cuda
