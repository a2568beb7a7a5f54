#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/cpu/exp.h"
#include "kernels/cpu/lanes.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// scores -> softmax(scores), over `count` values padded to lanes with -inf.
void Softmax(std::vector<float>& scores) {
  Lanes max = Broadcast(kNegativeInfinity);
  for (size_t k = 0; k < scores.size(); k += kLanes) {
    max = Max(max, Load(&scores[k]));
  }
  const Lanes highest = Broadcast(Max(max));
  Lanes sum = Zero();
  for (size_t k = 0; k < scores.size(); k += kLanes) {
    const Lanes e = Exp(Subtract(Load(&scores[k]), highest));
    Store(e, &scores[k]);
    sum = Add(sum, e);
  }
  const Lanes total = Broadcast(Sum(sum));
  for (size_t k = 0; k < scores.size(); k += kLanes) {
    Store(Divide(Load(&scores[k]), total), &scores[k]);
  }
}

// The `count` best of scores[0, size) by (score descending, id ascending),
// into ids. A NaN counts as the worst, so that the order is total.
void BestIds(const float* scores, int64_t size, int64_t count,
             std::vector<int32_t>& ids) {
  const auto key = [scores](int32_t id) {
    return scores[id] == scores[id] ? scores[id] : kNegativeInfinity;
  };
  ids.resize(size);
  std::iota(ids.begin(), ids.end(), 0);
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(),
                    [&key](int32_t a, int32_t b) {
                      const float x = key(a);
                      const float y = key(b);
                      return x != y ? x > y : a < b;
                    });
  ids.resize(count);
}

// Leaves only the best groups, by their best score, with their scores; the
// others' become -1, below any softmax.
void KeepBestGroups(const RouterOptions& options, std::vector<float>& scores) {
  const int64_t size = options.experts / options.groups;
  std::vector<float> best(options.groups);
  for (int64_t g = 0; g < options.groups; ++g) {
    best[g] = *std::max_element(&scores[g * size], &scores[g * size] + size);
  }
  std::vector<int32_t> kept;
  BestIds(best.data(), options.groups, options.top_groups, kept);
  std::vector<bool> keep(options.groups, false);
  for (const int32_t g : kept) keep[g] = true;
  for (int64_t e = 0; e < options.experts; ++e) {
    if (!keep[e / size]) scores[e] = -1.0f;
  }
}

}  // namespace

void Router(ThreadPool& pool, const RouterOptions& options,
            const Weight& weight, const float* x, int64_t tokens, int32_t* ids,
            float* weights) {
  const int64_t experts = options.experts;
  std::vector<float> logits(tokens * experts);
  Linear(pool, weight, x, tokens, logits.data());
  pool.ParallelFor(tokens, 16, [&](int64_t begin, int64_t end) {
    const int64_t padded = (experts + kLanes - 1) / kLanes * kLanes;
    std::vector<float> scores;
    std::vector<int32_t> best;
    for (int64_t t = begin; t < end; ++t) {
      scores.assign(padded, kNegativeInfinity);
      std::copy_n(&logits[t * experts], experts, scores.begin());
      Softmax(scores);
      if (options.method == RouterMethod::kGroupLimitedGreedy) {
        KeepBestGroups(options, scores);
      }
      BestIds(scores.data(), experts, options.top_k, best);
      for (int64_t rank = 0; rank < options.top_k; ++rank) {
        ids[t * options.top_k + rank] = best[rank];
        weights[t * options.top_k + rank] =
            scores[best[rank]] * options.scaling_factor;
      }
    }
  });
}

}  // namespace invar::cpu
