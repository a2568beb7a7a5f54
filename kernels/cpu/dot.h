// What the linear layers of the CPU backend share around their dot products.
#ifndef INVAR_KERNELS_CPU_DOT_H_
#define INVAR_KERNELS_CPU_DOT_H_

#include <cstdint>
#include <vector>

#include "kernels/cpu/aligned.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/types.h"

namespace invar::cpu {

void Dot(Isa isa, const DotProducts& products);

// Rows a thread takes at once: enough work to be worth a claim.
int64_t DotGrain(const Weight& weight, int64_t tokens);

// The same of a whole weight, more where that shares its rows out more evenly.
int64_t EvenDotGrain(const Weight& weight, int64_t tokens, int threads);

// What a layer's weight multiplies: its input, or what it quantises that to.
struct QuantizedInput {
  const float* values = nullptr;  // (tokens, columns)
  // What multiplies a token's sums: one a token, or the same for all.
  std::vector<float> scales;
  float scale = 1.0f;
  AlignedVector<float> storage;  // of `values`, where they are not the input
  // `values` as DotProducts::pairs, where that is faster; else empty.
  AlignedVector<uint32_t> pairs;

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
