// A router that chooses what it is told to: the program defines cuda::Router
// itself, so the linker takes it instead of the library's.
#ifndef INVAR_TESTS_GPU_FORCED_EXPERTS_H_
#define INVAR_TESTS_GPU_FORCED_EXPERTS_H_

#include <cstdint>
#include <vector>

namespace invar::cuda {

// From now on the i-th call of Router, modulo the layers with experts, gives
// token t the experts ids[i][t], best first, weighed by the token's own scores.
// ids (layers, positions, top_k). Every call must have `positions` tokens.
void ForceExperts(const std::vector<int32_t>& ids, int64_t positions,
                  int64_t top_k, int64_t experts);
// Whether each of those layers has been given its experts, once.
bool ExpertsWereForced();

}  // namespace invar::cuda

#endif  // INVAR_TESTS_GPU_FORCED_EXPERTS_H_
