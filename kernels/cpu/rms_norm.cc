#include "kernels/cpu/lanes.h"
#include "kernels/ops.h"

namespace invar::cpu {

void RmsNorm(ThreadPool& pool, const float* x, int64_t x_stride,
             const float* gain, float eps, int64_t rows, int64_t size,
             float* out, int64_t out_stride) {
  const float count = static_cast<float>(size);
  pool.ParallelForRows(rows, size, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* in = x + row * x_stride;
      Lanes squares = Zero();
      for (int64_t k = 0; k < size; k += kLanes) {
        const Lanes v = Load(in + k);
        squares = MultiplyAdd(v, v, squares);
      }
      // The square root is the processor's: IEEE rounds it correctly.
      const __m128 mean = _mm_set_ss(Sum(squares) / count + eps);
      const Lanes root = Broadcast(_mm_cvtss_f32(_mm_sqrt_ss(mean)));
      for (int64_t k = 0; k < size; k += kLanes) {
        Store(Multiply(Divide(Load(in + k), root), Load(gain + k)),
              out + row * out_stride + k);
      }
    }
  });
}

}  // namespace invar::cpu
