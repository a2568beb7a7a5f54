// A product as kernels see it, and what a launch of one or two of them is
// asked for.
#ifndef INVAR_KERNELS_CUDA_GEMM_PROBLEM_H_
#define INVAR_KERNELS_CUDA_GEMM_PROBLEM_H_

#include "kernels/cuda/gemm_wgmma.h"
#include "kernels/cuda/ops_linear.h"

namespace invar::cuda {

// An H100's. Which tile is the fastest follows from it, and no bit.
inline constexpr int kMultiprocessors = 132;

struct GemmArguments {
  int rows;
  int tokens;
  int k_blocks;     // stages of 128 bytes that K takes
  int leaf_blocks;  // of one leaf
  int leaves;
  float scale;
  const float* row_scales;
  const float* token_scales;  // (tokens), or null
  const float* block_scales;  // of weights, (ScaleBlocks(rows), k_blocks)
  const float* group_scales;  // of inputs, (tokens, k_blocks)
  void* out;
  GemmOutput type;
};

struct GemmProblem {
  CUtensorMap weights;
  CUtensorMap x;
  GemmArguments a;
};

// What a caller asks for: one product, or two.
struct GemmTasks {
  GemmTask of[2];
  int count;
  int tokens;
  GemmOutput type;

  int Leaves() const {
    return static_cast<int>((of[0].weight->columns + of[0].leaf - 1) /
                            of[0].leaf);
  }
  int RowTiles(int rows) const {
    int64_t tiles = 0;
    for (int i = 0; i < count; ++i) {
      tiles += (of[i].weight->rows + rows - 1) / rows;
    }
    return static_cast<int>(tiles);
  }
};

// Rows of the boxes that a tile's inputs are copied in: few copies cost less.
template <int kTokens>
inline constexpr int kInputBoxRows = kTokens % kProductRows == 0 ? kProductRows
                                     : kTokens % 32 == 0         ? 32
                                                                 : 8;

inline GemmProblem MakeProblem(const GemmTask& task, const GemmTasks& tasks,
                               int box_rows) {
  const GemmWeight& weight = *task.weight;
  const int64_t block = kTileRowBytes / WeightElementBytes(weight.dtype);
  const bool scaled = weight.block_scales == nullptr;
  return {
      .weights = weight.map,
      .x = box_rows == kProductRows ? task.x->wide_map
           : box_rows == 32         ? task.x->middle_map
                                    : task.x->map,
      .a = {.rows = static_cast<int>(weight.rows),
            .tokens = tasks.tokens,
            .k_blocks = static_cast<int>((weight.columns + block - 1) / block),
            .leaf_blocks = static_cast<int>(task.leaf / block),
            .leaves =
                static_cast<int>((weight.columns + task.leaf - 1) / task.leaf),
            .scale = scaled ? weight.scale : 1.0f,
            .row_scales = scaled ? weight.row_scales : nullptr,
            .token_scales = scaled ? task.x->scales : nullptr,
            .block_scales = weight.block_scales,
            .group_scales = task.x->scales,
            .out = task.out,
            .type = tasks.type}};
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_GEMM_PROBLEM_H_
