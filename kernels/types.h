// What the kernels and their callers agree on: dtypes, weights, and the
// constants of the attention that are part of the numerics contract.
#ifndef INVAR_KERNELS_TYPES_H_
#define INVAR_KERNELS_TYPES_H_

#include <cstddef>
#include <cstdint>

namespace invar {

enum class WeightDtype { kBf16, kFp16, kFp32, kFp8E4m3 };

// Bytes of one element.
constexpr int64_t WeightElementBytes(WeightDtype dtype) {
  switch (dtype) {
    case WeightDtype::kFp8E4m3:
      return 1;
    case WeightDtype::kBf16:
    case WeightDtype::kFp16:
      return 2;
    case WeightDtype::kFp32:
      return 4;
  }
  return 0;
}

// Side of the square blocks of a weight that share a scale, and length of the
// runs of an input that do.
inline constexpr int64_t kScaleBlock = 128;
constexpr int64_t ScaleBlocks(int64_t size) {
  return (size + kScaleBlock - 1) / kScaleBlock;
}

// FP8 inputs whose scales are made of the inputs themselves: max|x| / 448 of a
// row, or of each run of kScaleBlock in it. Never of several rows.
enum class DynamicInputs { kNone, kToken, kGroup };

// A matrix as the checkpoint has it: (rows, columns), row-major, y = W x.
// `columns` is a multiple of kLanes.
struct Weight {
  WeightDtype dtype = WeightDtype::kBf16;
  const std::byte* data = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  // W = scale * element. 1 unless FP8.
  float scale = 1.0f;
  // Above 0: the checkpoint asks for FP8 inputs, x is replaced by
  // input_scale * e4m3(x / input_scale). 0: x stays fp32.
  float input_scale = 0.0f;
  DynamicInputs dynamic_inputs = DynamicInputs::kNone;
  // Instead of `scale`, one a row: (rows).
  const float* row_scales = nullptr;
  // Instead of `scale`, one a block of kScaleBlock x kScaleBlock:
  // (blocks, ScaleBlocks(columns)). Row r is in the blocks' row
  // (block_offset + r) / kScaleBlock.
  const float* block_scales = nullptr;
  int64_t block_offset = 0;

  // The scales of row r's blocks, left to right.
  const float* BlockScales(int64_t r) const {
    return block_scales +
           (block_offset + r) / kScaleBlock * ScaleBlocks(columns);
  }
  // What multiplies row r's sum, its blocks apart.
  float RowScale(int64_t r) const {
    return row_scales != nullptr     ? row_scales[r]
           : block_scales != nullptr ? 1.0f
                                     : scale;
  }
  // Rows [first, first + count).
  Weight Slice(int64_t first, int64_t count) const {
    Weight slice = *this;
    slice.data += first * columns * WeightElementBytes(dtype);
    slice.rows = count;
    if (row_scales != nullptr) slice.row_scales += first;
    slice.block_offset += first;
    return slice;
  }
};

enum class KvDtype { kFp8E5m2, kFp8E4m3, kBf16, kFp32 };

// Bytes of one element.
constexpr int64_t KvElementBytes(KvDtype dtype) {
  switch (dtype) {
    case KvDtype::kFp8E5m2:
    case KvDtype::kFp8E4m3:
      return 1;
    case KvDtype::kBf16:
      return 2;
    case KvDtype::kFp32:
      return 4;
  }
  return 0;
}

// As a config names it: "FP8_E5M2".
constexpr const char* Name(KvDtype dtype) {
  switch (dtype) {
    case KvDtype::kFp8E5m2:
      return "FP8_E5M2";
    case KvDtype::kFp8E4m3:
      return "FP8_E4M3";
    case KvDtype::kBf16:
      return "BF16";
    case KvDtype::kFp32:
      return "FP32";
  }
  return "";
}

// Partial sums of a dot product on the CPU: lane j takes k = j mod 16.
inline constexpr int64_t kLanes = 16;

// Tokens a cache block holds.
inline constexpr int64_t kBlockTokens = 64;

// Positions of one step of the online softmax, walked from position 0.
inline constexpr int64_t kAttentionTile = kBlockTokens;

// Positions of one of the CPU's splits; splits start at multiples and merge in
// order. The GPU's are kernels/cuda/attention_splits.h's.
inline constexpr int64_t kAttentionSplit = 256;
static_assert(kAttentionSplit % kAttentionTile == 0,
              "a tile never straddles two splits");

// Widest latent that the attention's fixed scratch holds.
inline constexpr int64_t kMaxKvLoraRank = 1024;

// Row-parallel weights (o_proj, dense and shared down_proj) are summed in
// leaves along K, so that tensor parallelism can later cut between leaves
// without moving a bit. At most kMaxLeaves of them, folded as one binary tree.
inline constexpr int64_t kMaxLeaves = 8;
constexpr int64_t RowParallelLeaf(int64_t columns) {
  return 128 * ((columns + 1023) / 1024);
}

}  // namespace invar

#endif  // INVAR_KERNELS_TYPES_H_
