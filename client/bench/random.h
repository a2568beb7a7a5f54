// Numbers from a seed: a load that was measured once can be sent again.
#ifndef INVAR_CLIENT_BENCH_RANDOM_H_
#define INVAR_CLIENT_BENCH_RANDOM_H_

#include <cstdint>

namespace invar::bench {

// SplitMix64. A stream is begun anew for each thing that is drawn, so that the
// n-th request is the same whether or not the ones before it were made.
class Random {
 public:
  Random(uint64_t seed, uint64_t stream) : state_(seed) {
    state_ = Next() ^ stream;
  }

  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // In [low, high].
  int64_t Between(int64_t low, int64_t high) {
    return low +
           static_cast<int64_t>(Next() % static_cast<uint64_t>(high - low + 1));
  }
  // In (0, 1].
  double Unit() { return (static_cast<double>(Next() >> 11) + 1) * 0x1p-53; }

 private:
  uint64_t state_;
};

}  // namespace invar::bench

#endif  // INVAR_CLIENT_BENCH_RANDOM_H_
