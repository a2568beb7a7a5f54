#include "kernels/cpu/dot.h"

#include <algorithm>

#include "kernels/cpu/codes.h"
#include "kernels/cpu/lanes.h"

namespace invar::cpu {

const IsaKernels& KernelsOf(Isa isa) {
  return isa == Isa::kAvx512 ? kAvx512Kernels : kAvx2Kernels;
}

void Dot(Isa isa, const DotProducts& products) { KernelsOf(isa).dot(products); }

int64_t DotGrain(const Weight& weight, int64_t tokens) {
  constexpr int64_t kRowsMost = 128;
  constexpr int64_t kProductsWorthAClaim = 1 << 15;
  const int64_t rows =
      kProductsWorthAClaim / std::max<int64_t>(1, weight.columns * tokens);
  return std::clamp<int64_t>((rows + 3) / 4 * 4, 4, kRowsMost);
}

float OutputScale(const Weight& weight) {
  return weight.input_scale > 0.0f ? weight.input_scale * weight.scale
                                   : weight.scale;
}

void QuantizeInput(ThreadPool& pool, const float* x, float input_scale,
                   int64_t count, float* out) {
  const Lanes scale = Broadcast(input_scale);
  pool.ParallelFor(count / kLanes, 512, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin * kLanes; k < end * kLanes; k += kLanes) {
      Store(Fp8E4m3Code::Round(Divide(Load(x + k), scale)), out + k);
    }
  });
}

}  // namespace invar::cpu
