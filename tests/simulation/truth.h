// What a simulated pool writes: any other value at its place is a wrong one.
#ifndef INVAR_TESTS_SIMULATION_TRUTH_H_
#define INVAR_TESTS_SIMULATION_TRUTH_H_

#include <cstdint>

namespace invar::simulation {

inline constexpr int kPools = 2;

// `seed` stands for all of the request, `index` is of its answer.
inline int32_t TokenAt(int pool, uint64_t seed, int32_t index,
                       int64_t position) {
  return static_cast<int32_t>(
      (pool * 31 + seed * 17 + index * 101 + position * 7) % 1009);
}

inline float ScoreAt(int pool, uint64_t seed, int64_t position) {
  return -static_cast<float>(TokenAt(pool, seed, 0, position));
}

}  // namespace invar::simulation

#endif  // INVAR_TESTS_SIMULATION_TRUTH_H_
