#include "kernels/cpu/silu.h"
#include "kernels/ops.h"

namespace invar::cpu {

void SiluMul(ThreadPool& pool, const float* gate, const float* up,
             int64_t count, float* out) {
  pool.ParallelFor(count / kLanes, 256, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin * kLanes; k < end * kLanes; k += kLanes) {
      Store(Multiply(Silu(Load(gate + k)), Load(up + k)), out + k);
    }
  });
}

}  // namespace invar::cpu
