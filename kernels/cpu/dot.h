// The inner product behind every linear layer of the CPU backend.
#ifndef INVAR_KERNELS_CPU_DOT_H_
#define INVAR_KERNELS_CPU_DOT_H_

#include <cstdint>

#include "kernels/cpu/thread_pool.h"
#include "kernels/types.h"

namespace invar::cpu {

// out[t][row] = scale * W[row, :] . x[t][:] for rows [row_begin, row_end) and
// every t of `tokens`, in the 16-lane order.
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
  float scale = 1.0f;
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

// What multiplies a linear layer's sums: W.scale, and with FP8 inputs theirs.
float OutputScale(const Weight& weight);

// The values that a layer's FP8 inputs stand for, in units of input_scale:
// e4m3(x / input_scale), `count` of them, a multiple of kLanes.
// out may be x.
void QuantizeInput(ThreadPool& pool, const float* x, float input_scale,
                   int64_t count, float* out);

}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_DOT_H_
