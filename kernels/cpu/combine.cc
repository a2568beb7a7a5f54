#include "kernels/cpu/lanes.h"
#include "kernels/ops.h"

namespace invar::cpu {

void Combine(ThreadPool& pool, const float* shared, const float* slots,
             const float* weights, int64_t tokens, int64_t top_k, int64_t size,
             float* hidden) {
  pool.ParallelForRows(
      tokens, (top_k + 2) * size, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          for (int64_t k = 0; k < size; k += kLanes) {
            Lanes sum = Load(shared + t * size + k);
            for (int64_t rank = 0; rank < top_k; ++rank) {
              const int64_t slot = t * top_k + rank;
              sum = MultiplyAdd(Broadcast(weights[slot]),
                                Load(slots + slot * size + k), sum);
            }
            float* h = hidden + t * size + k;
            Store(Add(Load(h), sum), h);
          }
        }
      });
}

}  // namespace invar::cpu
