#include "kernels/cpu/lanes.h"
#include "kernels/ops.h"

namespace invar::cpu {

void AddInto(ThreadPool& pool, const float* y, int64_t count, float* hidden) {
  pool.ParallelFor(count / kLanes, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin * kLanes; k < end * kLanes; k += kLanes) {
      Store(Add(Load(hidden + k), Load(y + k)), hidden + k);
    }
  });
}

}  // namespace invar::cpu
