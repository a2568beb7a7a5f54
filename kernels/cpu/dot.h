// The inner product behind every linear layer of the CPU backend.
#ifndef INVAR_KERNELS_CPU_DOT_H_
#define INVAR_KERNELS_CPU_DOT_H_

#include <cstdint>
#include <vector>

#include "kernels/cpu/thread_pool.h"
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
  float* const* out = nullptr;      // one pointer a token: (rows)
  int64_t tokens = 0;
};
void Dot(Isa isa, const DotProducts& products);

// Dot for each instruction set; the same bits.
void DotAvx2(const DotProducts& products);
void DotAvx512(const DotProducts& products);

// Rows a thread takes at once: enough work to be worth a claim.
int64_t DotGrain(const Weight& weight, int64_t tokens);

// What a layer's weight multiplies: its input, or what it quantises that to.
struct QuantizedInput {
  const float* values = nullptr;  // (tokens, columns)
  // What multiplies a token's sums: one a token, or the same for all.
  std::vector<float> scales;
  float scale = 1.0f;
  std::vector<float> storage;  // of `values`, where they are not the input

  const float* token_scales() const {
    return scales.empty() ? nullptr : scales.data();
  }
};

// x (tokens, columns) in the form that `weight` asks for:
//   fp32          x
//   static        e4m3(x / input_scale), scale = input_scale
//   a token       e4m3(x / s), s = max|x| / 448 of the row, scales = s
//   a group       s * e4m3(x / s), s of each run of kScaleBlock
// A row or a run of zeros has s = 1.
QuantizedInput QuantizeInput(ThreadPool& pool, const Weight& weight,
                             const float* x, int64_t tokens);

}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_DOT_H_
