// Numbers from a seed, the same on every platform and by every compiler.
#ifndef INVAR_TESTS_CONTRACT_RANDOM_H_
#define INVAR_TESTS_CONTRACT_RANDOM_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace invar::contract {

// SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // In [0, count).
  int64_t Below(int64_t count) {
    return static_cast<int64_t>(Next() % static_cast<uint64_t>(count));
  }
  template <typename Value>
  void Shuffle(std::vector<Value>& values) {
    for (size_t i = values.size(); i > 1; --i) {
      std::swap(values[i - 1], values[Below(static_cast<int64_t>(i))]);
    }
  }

 private:
  uint64_t state_;
};

// A seed for what `name` names (FNV-1a).
inline uint64_t SeedFor(uint64_t seed, const std::string& name) {
  uint64_t hash = 14695981039346656037ull ^ seed;
  for (const unsigned char byte : name) hash = (hash ^ byte) * 1099511628211ull;
  return hash;
}

}  // namespace invar::contract

#endif  // INVAR_TESTS_CONTRACT_RANDOM_H_
