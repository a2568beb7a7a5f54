// What the linear layers of the CPU backend share around their dot products.
#ifndef INVAR_KERNELS_CPU_DOT_H_
#define INVAR_KERNELS_CPU_DOT_H_

#include <cstdint>

#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/types.h"

namespace invar::cpu {

void Dot(Isa isa, const DotProducts& products);

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
