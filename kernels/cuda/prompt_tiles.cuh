// Cached rows and queries as the operands of warpgroup products, and these
// products: what prompt_attention.cu is made of.
#ifndef INVAR_KERNELS_CUDA_PROMPT_TILES_CUH_
#define INVAR_KERNELS_CUDA_PROMPT_TILES_CUH_

#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_wgmma.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/ops.h"

namespace invar::cuda {

// An operand of 64 rows lies as blocks of 64 columns, in swizzled rows of 128
// bytes: as the copy engine would lay it.
inline constexpr int kTile = static_cast<int>(kAttentionTile);
inline constexpr int kBlockColumns = 64;
inline constexpr int kBlockBytes = 64 * kTileRowBytes;
inline constexpr int kPromptTileBytes = kRow / kBlockColumns * kBlockBytes;
// Of packed queries a tile has so many neighbouring tokens, and heads of each.
inline constexpr int kPackedTokens = 4;
inline constexpr int kPackedHeads = 16;
static_assert(kPackedTokens * kPackedHeads == kTile);

// `x`, which the compiler cannot know any more: else it keeps the many
// addresses or descriptors that are made of it in registers over a whole loop.
__device__ inline uint32_t Unknown(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

// Where column k of a row lies in the order of operands.cuh.
template <typename Code>
__device__ inline int OperandPlace(int k) {
  constexpr int kElements = 16 / Code::kBytes;
  const int step = k / (4 * kElements) * (kElements / 4) + k % kElements / 4;
  const int thread = k % (4 * kElements) / kElements;
  return 16 * step + 2 * thread + k % 4 / 2 * 8 + k % 2;
}

// Byte of 16-byte chunk `chunk` (of eight) in row `row` of a block.
__device__ inline int SwizzledChunk(int row, int chunk) {
  return row * kTileRowBytes + ((chunk ^ row % 8) * 16);
}

// Chunk `chunk` of 64 bytes of row `row` in memory, as operands; blocks of
// columns lie block_bytes apart.
template <typename Code>
__device__ inline void StoreOperands(const uint4 (&codes)[4], int row,
                                     int chunk, int block_bytes,
                                     std::byte* to) {
  constexpr int kChunkSteps = 4 / Code::kBytes;
#pragma unroll
  for (int j = 0; j < kChunkSteps; ++j) {
    uint2 b[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) b[t] = RightOperand<Code>(codes[t], j);
    const int at = 2 * (chunk * kChunkSteps + j);  // in 16 bytes
    std::byte* const block = to + at / 8 * block_bytes;
    *reinterpret_cast<uint4*>(block + SwizzledChunk(row, at % 8)) = {
        b[0].x, b[1].x, b[2].x, b[3].x};
    *reinterpret_cast<uint4*>(block + SwizzledChunk(row, at % 8 + 1)) = {
        b[0].y, b[1].y, b[2].y, b[3].y};
  }
}

// The way back: the column that lies at `place`.
template <typename Code>
__device__ inline int OperandColumn(int place) {
  constexpr int kElements = 16 / Code::kBytes;
  constexpr int kRunSteps = kElements / 4;
  const int step = place / 16;
  return step / kRunSteps * (4 * kElements) + place % 8 / 2 * kElements +
         step % kRunSteps * 4 + place % 16 / 8 * 2 + place % 2;
}

// Where columns k and k + 1 (k even) of row `row` lie in an operand of kRows.
template <typename Code, int kRows>
__device__ inline uint32_t* OperandPair(std::byte* tile, int row, int k) {
  const int at = OperandPlace<Code>(k);
  const int byte = at % kBlockColumns * 2;
  return reinterpret_cast<uint32_t*>(
      tile + at / kBlockColumns * (kRows * kTileRowBytes) +
      SwizzledChunk(row, byte / 16) + byte % 16);
}

// What a row whose largest magnitude is `largest` is multiplied with before it
// is rounded: operands.cuh.
template <typename Operand>
__device__ inline float OperandScale(float largest) {
  return std::is_same_v<Operand, __half> ? RowScale(largest) : 1.0f;
}

// ---- Tiles as operands ------------------------------------------------------

// The last token of the step whose table is at most `block`: tables ascend. By
// whole warps.
__device__ inline int LastToken(const TokenPlaces& places, int block) {
  const int lane = threadIdx.x % 32;
  int low = 0;
  int high = static_cast<int>(places.tokens) - 1;
  while (low < high) {
    // Of 32 tokens that far apart the last that will do, and those up to the
    // next.
    const int step = (high - low + 31) / 32;
    const int probe = min(low + (lane + 1) * step, high);
    const int count =
        __popc(__ballot_sync(0xffffffff, places.tables[probe] <= block));
    if (count < 32) high = min(low + (count + 1) * step, high) - 1;
    low = min(low + count * step, high);
  }
  return low;
}

// Thread blocks a tile, and threads of each, that make operands of it.
inline constexpr int kStageParts = 4;
inline constexpr int kStageThreads = 160;

// Tile i is the cache's block block_ids[i], rows past its sequence's last token
// zeros. A thread takes 64 bytes of a row at a time. The attention's units
// begin anew. grid (tiles, kStageParts)
template <typename Code>
__global__ void __launch_bounds__(kStageThreads)
    StageKernel(TokenPlaces places, const std::byte* cache, std::byte* tiles,
                int* next_unit) {
  constexpr int kRowChunks = kRow * Code::kBytes / 64;
  constexpr int kPartRows = kTile / kStageParts;
  AllowNextKernel();
  WaitForPriorKernel();
  const int block = blockIdx.x;
  const int first = blockIdx.y * kPartRows;
  if (block == 0 && first == 0 && threadIdx.x == 0) *next_unit = 0;
  const int last = LastToken(places, block);
  const int rows =
      places.positions[last] + 1 - (block - places.tables[last]) * kTile;
  const std::byte* from =
      cache + int64_t{places.block_ids[block]} * kTile * kRow * Code::kBytes;
  std::byte* const to = tiles + int64_t{block} * kPromptTileBytes;
  for (int i = threadIdx.x; i < kPartRows * kRowChunks; i += kStageThreads) {
    const int row = first + i / kRowChunks;
    const int chunk = i % kRowChunks;
    uint4 codes[4] = {};
    if (row < rows) {
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        codes[t] = reinterpret_cast<const uint4*>(
            from)[4 * (row * kRowChunks + chunk) + t];
      }
    }
    StoreOperands<Code>(codes, row, chunk, kBlockBytes, to);
  }
}

// ---- What has been attended to ----------------------------------------------

// A (head, token)'s latents as the left operand of AbsorbValue, beside weights
// of `Weight`: pieces of 16 bytes, two steps of one thread, so that it reads
// them from memory straight into registers.
inline constexpr int kAttendedRowBytes = 2 * kLatent;

// The piece that begins with column k, a multiple of eight.
template <typename Weight>
__device__ inline uint4* AttendedPiece(std::byte* row, int k) {
  const int at = OperandPlace<Weight>(k);
  return reinterpret_cast<uint4*>(row) + at / 32 * 4 + at % 16 / 2;
}

// ---- Products ---------------------------------------------------------------

template <typename Operand>
using FormatOf =
    std::conditional_t<std::is_same_v<Operand, __half>, Fp16Format, Bf16Format>;

// Rows of a block as the right operand that lies transposed: K down its rows, N
// along them, blocks of 64 columns one after the other.
__device__ inline uint64_t TransposedDescriptor(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | uint64_t{8 * kTileRowBytes >> 4} << 32 |
         uint64_t{kBlockBytes >> 4} << 16 | (address & 0x3ffff) >> 4;
}

#define INVAR_D4(I) "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3])
#define INVAR_D16(I) \
  INVAR_D4(I), INVAR_D4(I + 4), INVAR_D4(I + 8), INVAR_D4(I + 12)
#define INVAR_VALUES(TYPES, TRANSPOSED)                                     \
  asm volatile(                                                             \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPES                  \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, " \
      "%15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, "   \
      "%28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, "   \
      "%41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, "   \
      "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, " \
      "%67}, %68, 1, 1, 1, " TRANSPOSED ";"                                 \
      : INVAR_D16(0), INVAR_D16(16), INVAR_D16(32), INVAR_D16(48)           \
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b))

// d (64 rows, 128 columns) += a b, a in registers as an mma's, b transposed.
template <typename Operand>
__device__ inline void ValueProduct(float (&d)[64], const uint4& a,
                                    uint64_t b) {
  if constexpr (std::is_same_v<Operand, __half>) {
    INVAR_VALUES("f16.f16", "1");
  } else {
    INVAR_VALUES("bf16.bf16", "1");
  }
}
// The same, b K-major as TileDescriptor has it.
template <typename Operand>
__device__ inline void RowProduct(float (&d)[64], const uint4& a, uint64_t b) {
  if constexpr (std::is_same_v<Operand, __half>) {
    INVAR_VALUES("f16.f16", "0");
  } else {
    INVAR_VALUES("bf16.bf16", "0");
  }
}
#undef INVAR_VALUES
#undef INVAR_D16
#undef INVAR_D4

// Contiguous global memory into shared memory; its bytes count on `barrier`.
__device__ inline void CopyBulk(void* to, const void* from, int bytes,
                                uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];" ::"r"(SharedAddress(to)),
      "l"(from), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_PROMPT_TILES_CUH_
