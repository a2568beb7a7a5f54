// The loops that take nearly all of a step's time, compiled once for each
// instruction set: avx2.cc, avx512.cc and avx512_bf16.cc. All give the same
// bits.
#ifndef INVAR_KERNELS_CPU_ISA_KERNELS_H_
#define INVAR_KERNELS_CPU_ISA_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/isa.h"
#include "kernels/types.h"

namespace invar::cpu {

// out[t][row] = scale * sum for rows [row_begin, row_end) and every t of
// `tokens`: sum is W[row, :] . x[t][:] in the 16-lane order, over W's elements,
// each multiplied by its block's scale if there are blocks; scale is
// input_scales[t] * W.RowScale(row).
//
// leaf: 0 sums all of K in one go; otherwise leaves of that many columns are
// summed apart and folded as the tree of kMaxLeaves places.
//
// How many rows and tokens share registers is free: an output's sums see its
// own row and token alone.
struct DotProducts {
  const Weight* weight = nullptr;
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int64_t leaf = 0;
  const float* input_scales = nullptr;  // one a token; null: input_scale
  float input_scale = 1.0f;
  const float* const* x = nullptr;  // one pointer a token: (columns)
  // The same as pairs, (PairsOf(columns)) a token, or null: only of e4m3 values
  // for e4m3 weights without blocks, and worth it for many tokens alone.
  const uint32_t* const* pairs = nullptr;
  float* const* out = nullptr;  // one pointer a token: (rows)
  int64_t tokens = 0;
  // What is read after these rows, or null: fetched on the way.
  const std::byte* next = nullptr;
};

// Values that bf16 has exactly, two in a word: word 16 i + l has value 32 i + l
// in its high half and value 32 i + 16 + l, zero past the end, in its low one.
constexpr int64_t PairsOf(int64_t columns) {
  return (columns + 2 * kLanes - 1) / (2 * kLanes) * kLanes;
}

// out[t][column] = scale * sum_n x[t][n] W[n, column] over all rows n of the
// weight, one ascending chain, for columns [column_begin, column_end).
struct ColumnSums {
  const Weight* weight = nullptr;
  int64_t column_begin = 0;  // multiples of kLanes
  int64_t column_end = 0;
  const float* const* x = nullptr;  // one pointer a token: (rows)
  float* const* out = nullptr;      // one pointer a token: (columns)
  int64_t tokens = 0;
};

// Heads that walk the cache together, sharing each row's decoding.
inline constexpr int kHeadsAtOnce = 4;

// Consecutive rows of the cache, within one block.
struct KvTile {
  KvDtype dtype = KvDtype::kFp8E5m2;
  const std::byte* data = nullptr;
  int64_t rows = 0;
  int64_t row_elements = 0;  // L + R
  int64_t latent = 0;        // L
  // The rows that will be walked after these, which the kernels fetch on the
  // way: next_lines lines of the cache from `next` on.
  const std::byte* next = nullptr;
  int64_t next_lines = 0;
};

inline constexpr int64_t kCacheLine = 64;

struct IsaKernels {
  void (*dot)(const DotProducts& products);
  void (*column_sums)(const ColumnSums& sums);
  // scores[h * kAttentionTile + row] = scale * query[h] . row, in the 16-lane
  // order. query (heads, L + R), heads one of 1, 2 and kHeadsAtOnce.
  void (*tile_scores)(const KvTile& tile, const float* query, int heads,
                      float scale, float* scores);
  // latents[h][0:L] += weights[h * kAttentionTile + row] * row[0:L], rows
  // ascending in one chain.
  void (*tile_values)(const KvTile& tile, const float* weights, int heads,
                      float* const* latents);
};

const IsaKernels& KernelsOf(Isa isa);

extern const IsaKernels kAvx2Kernels;
extern const IsaKernels kAvx512Kernels;
extern const IsaKernels kAvx512Bf16Kernels;

// Whether this processor, which has AVX512_BF16, multiplies pairs as two fused
// multiply-adds, the high halves first.
bool PairsAreTwoMultiplyAdds();

// Whether this processor, which has AVX512_BF16, makes more multiply-adds of
// pairs than of fp32 in the same time, as measured on the first call: twice as
// many on Zen 4 and 5, half as many on Sapphire Rapids.
bool PairsAreFaster();

}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_ISA_KERNELS_H_
