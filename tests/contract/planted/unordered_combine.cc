// Planted: a token's experts are added in the order in which they finish, as
// atomic adds do: the order depends on what else is in the step. Here it turns
// with the token's place in it.
#define Combine CombineInRankOrder
#include "kernels/cpu/combine.cc"
#undef Combine

#include <algorithm>
#include <vector>

namespace invar::cpu {

void Combine(ThreadPool& pool, const float* shared, const float* slots,
             const float* weights, int64_t tokens, int64_t top_k, int64_t size,
             float* hidden) {
  std::vector<float> arrived_slots(tokens * top_k * size);
  std::vector<float> arrived_weights(tokens * top_k);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t rank = 0; rank < top_k; ++rank) {
      const int64_t from = t * top_k + (rank + t) % top_k;
      const int64_t to = t * top_k + rank;
      arrived_weights[to] = weights[from];
      std::copy_n(slots + from * size, size, &arrived_slots[to * size]);
    }
  }
  CombineInRankOrder(pool, shared, arrived_slots.data(), arrived_weights.data(),
                     tokens, top_k, size, hidden);
}

}  // namespace invar::cpu
