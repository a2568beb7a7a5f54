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

void Sigmoid(std::vector<float>& scores) {
  for (size_t k = 0; k < scores.size(); k += kLanes) {
    const Lanes e = Exp(Subtract(Zero(), Load(&scores[k])));
    Store(Divide(Broadcast(1.0f), Add(Broadcast(1.0f), e)), &scores[k]);
  }
}

// What a group is chosen by: its best value, or the sum of its two best.
float GroupScore(RouterMethod method, const float* values, int64_t size) {
  if (method == RouterMethod::kGroupLimitedGreedy || size == 1) {
    return *std::max_element(values, values + size);
  }
  std::vector<int32_t> best;
  BestIds(values, size, 2, best);
  return values[best[0]] + values[best[1]];
}

// Leaves only the best groups with their values; the others' become -inf.
void KeepBestGroups(const RouterOptions& options, std::vector<float>& values) {
  const int64_t size = options.experts / options.groups;
  std::vector<float> group_scores(options.groups);
  for (int64_t g = 0; g < options.groups; ++g) {
    group_scores[g] = GroupScore(options.method, &values[g * size], size);
  }
  std::vector<int32_t> kept;
  BestIds(group_scores.data(), options.groups, options.top_groups, kept);
  std::vector<bool> keep(options.groups, false);
  for (const int32_t g : kept) keep[g] = true;
  for (int64_t e = 0; e < options.experts; ++e) {
    if (!keep[e / size]) values[e] = kNegativeInfinity;
  }
}

// weights = the scores of `best`, normalised and scaled as `options` say.
void Weigh(const RouterOptions& options, const std::vector<float>& scores,
           const std::vector<int32_t>& best, float* weights) {
  float sum = 0.0f;
  for (const int32_t id : best) sum = sum + scores[id];
  for (size_t rank = 0; rank < best.size(); ++rank) {
    const float score = scores[best[rank]];
    weights[rank] = (options.normalise ? score / (sum + 1e-20f) : score) *
                    options.scaling_factor;
  }
}

}  // namespace

void Router(ThreadPool& pool, const RouterOptions& options,
            const Weight& weight, const float* correction, const float* x,
            int64_t tokens, int32_t* ids, float* weights) {
  const int64_t experts = options.experts;
  std::vector<float> logits(tokens * experts);
  Linear(pool, weight, x, tokens, logits.data());
  // Sorting takes most of it.
  pool.ParallelForRows(tokens, 128 * experts, [&](int64_t begin, int64_t end) {
    const int64_t padded = (experts + kLanes - 1) / kLanes * kLanes;
    std::vector<float> scores;
    std::vector<float> choice;
    std::vector<int32_t> best;
    for (int64_t t = begin; t < end; ++t) {
      scores.assign(padded, kNegativeInfinity);
      std::copy_n(&logits[t * experts], experts, scores.begin());
      if (options.scoring == RouterScoring::kSigmoid) {
        Sigmoid(scores);
      } else {
        Softmax(scores);
      }
      choice.assign(scores.begin(), scores.begin() + experts);
      if (correction != nullptr) {
        for (int64_t e = 0; e < experts; ++e) choice[e] += correction[e];
      }
      if (options.method != RouterMethod::kGreedy) {
        KeepBestGroups(options, choice);
      }
      BestIds(choice.data(), experts, options.top_k, best);
      std::copy(best.begin(), best.end(), ids + t * options.top_k);
      Weigh(options, scores, best, weights + t * options.top_k);
    }
  });
}

}  // namespace invar::cpu
