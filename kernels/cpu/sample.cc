#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/cpu/exp.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/philox.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

constexpr int kWeightBits = 40;

struct Candidate {
  float logit;
  int32_t id;
  uint64_t weight;
};

// Heap order: the front is the highest logit, then the lowest id.
bool Behind(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit < b.logit : a.id > b.id;
}

// The ids with a weight above 0, ascending.
std::vector<Candidate> Weigh(std::span<const float> logits, float highest,
                             float temperature) {
  std::vector<Candidate> candidates;
  const Lanes offset = Broadcast(highest);
  const Lanes divisor = Broadcast(temperature);
  float values[kLanes];
  for (size_t begin = 0; begin < logits.size(); begin += kLanes) {
    const size_t count = std::min<size_t>(kLanes, logits.size() - begin);
    std::fill(values, values + kLanes, highest);
    std::copy_n(logits.begin() + begin, count, values);
    Store(Exp(Divide(Subtract(Load(values), offset), divisor)), values);
    for (size_t i = 0; i < count; ++i) {
      // Exact: a power of two times a value of at most 1. NaN compares false.
      const float scaled = values[i] * static_cast<float>(1ull << kWeightBits);
      if (!(scaled >= 1.0f)) continue;
      candidates.push_back({logits[begin + i], static_cast<int32_t>(begin + i),
                            static_cast<uint64_t>(scaled)});
    }
  }
  return candidates;
}

// A fraction as a multiple of 2^-32, so that comparisons with it are exact.
uint64_t Fixed32(float fraction) {
  return static_cast<uint64_t>(static_cast<double>(fraction) * 4294967296.0);
}

uint64_t TotalWeight(const std::vector<Candidate>& candidates) {
  uint64_t total = 0;
  for (const Candidate& candidate : candidates) total += candidate.weight;
  return total;
}

// Keeps the best `top_k` (0: all), of them the shortest prefix that weighs
// top_p, and leaves the rest out. A heap sorts only as far as is kept.
void KeepPrefix(int32_t top_k, float top_p,
                std::vector<Candidate>& candidates) {
  const size_t count = top_k > 0 ? std::min<size_t>(top_k, candidates.size())
                                 : candidates.size();
  std::vector<Candidate> kept;
  std::make_heap(candidates.begin(), candidates.end(), Behind);
  const auto pop = [&] {
    std::pop_heap(candidates.begin(), candidates.end(), Behind);
    kept.push_back(candidates.back());
    candidates.pop_back();
  };
  if (count < candidates.size()) {
    while (kept.size() < count) pop();
    candidates = std::move(kept);
    kept.clear();
    std::make_heap(candidates.begin(), candidates.end(), Behind);
  }
  if (top_p < 1.0f) {
    const unsigned __int128 wanted =
        static_cast<unsigned __int128>(TotalWeight(candidates)) *
        Fixed32(top_p);
    uint64_t sum = 0;
    while (!candidates.empty()) {
      pop();
      sum += kept.back().weight;
      if ((static_cast<unsigned __int128>(sum) << 32) >= wanted) break;
    }
    candidates = std::move(kept);
  }
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
}

}  // namespace

int32_t Sample(std::span<const float> logits, int64_t limit,
               const SamplingParameters& parameters, uint64_t seed,
               uint64_t position) {
  const int32_t best = Argmax(logits, limit);
  if (!(parameters.temperature > 0.0f)) return best;
  std::vector<Candidate> candidates =
      Weigh(logits.first(limit), logits[best], parameters.temperature);
  if (candidates.empty()) return best;  // only with a NaN or all -inf
  if (parameters.top_k > 0 || parameters.top_p < 1.0f) {
    KeepPrefix(parameters.top_k, parameters.top_p, candidates);
  }
  if (parameters.min_p > 0.0f) {
    const uint64_t least = Fixed32(parameters.min_p) << (kWeightBits - 32);
    std::erase_if(candidates, [least](const Candidate& candidate) {
      return candidate.weight < least;
    });
  }
  const uint64_t uniform = Philox64(seed, position);
  const uint64_t target = static_cast<uint64_t>(
      (static_cast<unsigned __int128>(uniform) * TotalWeight(candidates)) >>
      64);
  uint64_t sum = 0;
  for (const Candidate& candidate : candidates) {
    sum += candidate.weight;
    if (sum > target) return candidate.id;
  }
  return best;
}

}  // namespace invar::cpu
